"""The validation curves of a run, from its log: what tables and plots are made of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lawa_jax.report.savings import Saved, epochs_saved


class Curves(NamedTuple):
    """Validation metrics of a run.

    Attributes:
      raw: metrics of the raw weights by epoch, without their ``val/`` prefix.
      lawa: metrics of the averages by the epoch they end at.
      k: checkpoints in an average; None where there is no average.
      saved: epochs saved on validation loss, by end.
    """

    raw: dict[int, dict[str, float]]
    lawa: dict[int, dict[str, float]]
    k: int | None
    saved: dict[int, Saved]


def curves(epochs: Mapping[int, dict[str, Any]], averages: Mapping[int, dict[str, Any]]) -> Curves:
    """Curves from the log's ``epoch`` events by epoch and its ``lawa`` events by end."""
    raw = {e: _validation(row) for e, row in sorted(epochs.items())}
    lawa = {e: _validation(row) for e, row in sorted(averages.items())}
    k = next((row["k"] for row in averages.values()), None)
    saved = epochs_saved(
        {e: m["loss"] for e, m in raw.items()}, {e: m["loss"] for e, m in lawa.items()}
    )
    return Curves(raw, lawa, k, saved)


def _validation(row: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("val/"): v for name, v in row.items() if name.startswith("val/")}
