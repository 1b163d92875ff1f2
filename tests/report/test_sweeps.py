import math

import pytest

from lawa_jax.report.sweeps import sweep_plot
from lawa_jax.search.results import Row


def row(k, end, method="uniform", **metrics):
    return Row(f"k{k}", end, k, method, tuple(range(k)), (1 / k,) * k, metrics, 0.0, "")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_any_number_of_metrics_and_missing_ones(tmp_path, count):
    metrics = {f"m{i}": float(i) for i in range(count)}
    rows = [row(1, 5, **metrics), row(1, 5, "ema", **metrics), row(3, 5, "ema", m0=math.nan)]
    sweep_plot(rows, "run", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
