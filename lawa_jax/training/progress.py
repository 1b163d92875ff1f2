"""Progress on stderr: a bar with epoch, loss, samples/s and ETA, and a line for every epoch."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Into a file or a pipe a bar is noise: a line now and then is enough.
_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """A bar over the samples that remain.

    Args:
      samples: samples that remain to be trained on.
      epochs: the last epoch.
      unit: what a sample is called.
    """

    def __init__(self, samples: int, epochs: int, unit: str) -> None:
        self._epochs = epochs
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=samples,
            unit=unit,
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else _SECONDS_BETWEEN_LINES,
            smoothing=0.1,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
            leave=False,
        )

    def update(self, samples: int, epoch: int, loss: float) -> None:
        """Count trained samples; show the epoch and the last batch's loss."""
        self._bar.set_description(f"epoch {epoch}/{self._epochs} loss {loss:.4f}", refresh=False)
        self._bar.update(samples)

    def epoch(self, epoch: int, row: Mapping[str, Any]) -> None:
        """One line for a finished epoch."""
        self._line(f"epoch {epoch:3d}/{self._epochs}  {_figures(row, 'train/', 'val/')}")

    def lawa(self, row: Mapping[str, Any]) -> None:
        """One line for an evaluated average."""
        self._line(f"  LAWA k={row['k']} end={row['end']}  {_figures(row, 'val/')}")

    def _line(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()


def _figures(row: Mapping[str, Any], *prefixes: str) -> str:
    return "  ".join(
        f"{name} {value:.4f}" for name, value in row.items() if name.startswith(prefixes)
    )
