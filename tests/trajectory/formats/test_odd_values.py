"""Numbers and dtypes of untrusted files that nothing can hold are damage, not a traceback."""

import json

import pytest
from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats.facts import number
from lawa_jax.trajectory.formats.orbax_metadata import read_tree_metadata
from lawa_jax.trajectory.formats.zarr_header import parse_header


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


@pytest.mark.parametrize("dtype", [",f4", "i4,f8", "O", "U3", "M8[s]", "__name__", "np", "", "V4"])
def test_what_is_no_dtype_of_numbers_is_damage(dtype):
    content = {
        **{"shape": [2], "chunks": [2], "dtype": dtype, "compressor": None, "order": "C"},
        **{"fill_value": None, "filters": None, "zarr_format": 2},
    }
    with pytest.raises(CorruptCheckpointError, match="not supported"):
        parse_header(json.dumps(content).encode(), "x/.zarray")
    content["dtype"] = "bfloat16"
    assert parse_header(json.dumps(content).encode(), "x/.zarray").dtype.name == "bfloat16"
