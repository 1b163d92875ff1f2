"""Metrics as sums and counts: nothing is averaged before everything is counted."""

from collections.abc import Iterable, Mapping
from typing import Any

# name -> (sum over samples, number of samples), scalars on the device or the host
MetricSums = Mapping[str, tuple[Any, Any]]


class Totals:
    """Running (sum, count) pairs in float64 on the host."""

    def __init__(self, start: Mapping[str, tuple[float, float]] | None = None) -> None:
        self._pairs: dict[str, tuple[float, float]] = dict(start or {})

    def add(self, metrics: MetricSums) -> None:
        """Add one batch's sums and counts."""
        for name, (total, count) in metrics.items():
            s, n = self._pairs.get(name, (0.0, 0.0))
            self._pairs[name] = (s + float(total), n + float(count))

    def means(self) -> dict[str, float]:
        """Sum over count by name; nan where nothing was counted."""
        return {name: s / n if n else float("nan") for name, (s, n) in self._pairs.items()}

    def pairs(self) -> dict[str, tuple[float, float]]:
        """The raw (sum, count) pairs, to be stored and given back to the constructor."""
        return dict(self._pairs)


def total_of(batches: Iterable[MetricSums]) -> Totals:
    """Totals over an iterable of metrics."""
    totals = Totals()
    pending: MetricSums | None = None
    for metrics in batches:
        # Read one batch late: the device works on the next while the host waits.
        if pending is not None:
            totals.add(pending)
        pending = metrics
    if pending is not None:
        totals.add(pending)
    return totals
