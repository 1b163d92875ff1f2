"""Numbers of untrusted files that no integer or float holds are damage, not a traceback."""

import json

import pytest
from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats.facts import number
from lawa_jax.trajectory.formats.orbax_metadata import read_tree_metadata


def test_an_infinite_kind_of_key_is_damage(tmp_path):
    entry = {
        "key_metadata": [{"key": "w", "key_type": float("inf")}],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"('w',)": entry}}))
    with pytest.raises(CorruptCheckpointError, match="_METADATA"):
        read_tree_metadata(epath.Path(tmp_path))


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), "3", True, None])
def test_what_is_no_number_to_report_is_none(value):
    assert number(value) is None
