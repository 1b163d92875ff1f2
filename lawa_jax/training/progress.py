"""Progress on stderr: a bar with epoch, loss, samples/s and ETA, and a line for every epoch."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over the samples that remain; into a file or a pipe, lines only.

    Args:
      samples: samples that remain to be trained on.
      epochs: the last epoch.
      unit: what a sample is called (``"images"``).
      quiet: show nothing: another process does.
    """

    def __init__(self, samples: int, epochs: int, unit: str, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._epochs, self._unit = epochs, unit
        self._samples, self._done, self._started = samples, 0, time.perf_counter()
        self._bar = tqdm(
            total=samples,
            unit=f" {unit}",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            smoothing=0.1,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
        )

    def update(self, samples: int, epoch: int, loss: float) -> None:
        """Count trained samples; show the epoch and the last batch's loss."""
        self._done += samples
        self._bar.set_description_str(
            f"epoch {epoch}/{self._epochs} loss {loss:.4f}", refresh=False
        )
        self._bar.update(samples)

    def epoch(self, epoch: int, row: Mapping[str, Any]) -> None:
        """One line for a finished epoch."""
        elapsed = time.perf_counter() - self._started
        left = elapsed / max(1, self._done) * (self._samples - self._done)
        self._line(
            f"epoch {epoch:3d}/{self._epochs}  {_figures(row, 'train/loss', 'val/')}  "
            f"{row[self._unit + '_per_second']:.0f} {self._unit}/s  "
            f"ETA {tqdm.format_interval(left)}"
        )

    def lawa(self, row: Mapping[str, Any]) -> None:
        """One line for an evaluated average."""
        self._line(f"   LAWA k={row['k']}, end {row['end']:3d}:  {_figures(row, 'val/')}")

    def note(self, text: str) -> None:
        """One line about something that went wrong and does not stop the training."""
        self._line(text)

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _figures(row: Mapping[str, Any], *prefixes: str) -> str:
    shown = (name for name in row if name.startswith(prefixes) and not name.endswith("top5"))
    return "  ".join(f"{name} {row[name]:.4f}" for name in shown)
