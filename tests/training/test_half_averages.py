"""Averages of half-precision checkpoints are evaluated as they are, and not after rounding."""

from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from lawa_jax.output import write_checkpoint
from lawa_jax.training.lawa import average_on_device


@pytest.mark.parametrize(("stored", "evaluated"), [("float16", "float32"), ("float64", "float64")])
def test_dtype_of_what_is_evaluated(tmp_path, stored, evaluated):
    values = [np.asarray([1, 1 + 2**-10], stored), np.asarray([1 + 2**-10, 1], stored)]
    for step, value in enumerate(values, 1):
        write_checkpoint(tmp_path / "epochs" / str(step), {"params": {"w": value}})
    place = SimpleNamespace(group=SimpleNamespace(count=1), state=lambda tree: tree)
    task = SimpleNamespace(place=place)
    found = average_on_device(epath.Path(tmp_path), k=2, end=2, task=task)
    average = np.asarray(found.model["params"]["w"])
    assert average.dtype == evaluated
    np.testing.assert_array_equal(average, [1 + 2**-11] * 2)
