"""What LAWA saves: how many epochs later the raw weights are as good."""

from collections.abc import Mapping
from typing import NamedTuple


class Saved(NamedTuple):
    """Epochs saved by the average ending at one epoch.

    Attributes:
      epochs: the first epoch whose raw weights are at least as good, minus the average's end;
        negative where raw weights were as good before.
      at_least: no epoch of the run was as good, so that `epochs` is only a lower bound.
    """

    epochs: int
    at_least: bool

    def __str__(self) -> str:
        return f">= {self.epochs}" if self.at_least else str(self.epochs)


def epochs_saved(raw: Mapping[int, float], lawa: Mapping[int, float]) -> dict[int, Saved]:
    """Epochs saved for every end of `lawa`.

    >>> epochs_saved({1: 0.9, 2: 0.5, 3: 0.4}, {2: 0.4, 3: 0.3})
    {2: Saved(epochs=1, at_least=False), 3: Saved(epochs=0, at_least=True)}

    Args:
      raw: validation loss of the raw weights by epoch (lower is better).
      lawa: validation loss of the average by the epoch it ends at.
    """
    last = max(raw)
    saved = {}
    for end, loss in lawa.items():
        as_good = [epoch for epoch in sorted(raw) if raw[epoch] <= loss]
        saved[end] = Saved(as_good[0] - end, False) if as_good else Saved(last - end, True)
    return saved
