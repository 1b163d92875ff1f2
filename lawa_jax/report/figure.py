"""The figure of a run that was evaluated afterwards, from what `--evaluate --json` printed.

    python -m lawa_jax.report.figure raw.jsonl lawa5.jsonl --out figures/resnet50

The first file holds the raw weights (``--lawa_k 1``), the second the averages.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lawa_jax import script
from lawa_jax.errors import DataNotFoundError, SelectionError
from lawa_jax.report.curves import curves


@dataclass(frozen=True)
class FigureArguments:
    """Two evaluations of one run."""

    raw: Annotated[Path, tyro.conf.Positional]
    """JSON lines of --lawa_k 1."""
    averages: Annotated[Path, tyro.conf.Positional]
    """JSON lines of --lawa_k K."""
    out: Path
    """Folder for curves.png and curves.csv."""
    title: str = "LAWA"
    """Above the figure."""


def read(path: Path) -> dict[int, dict[str, Any]]:
    """Rows by the epoch they end at.

    Raises:
      DataNotFoundError: no such file.
      SelectionError: a line is no evaluation, or an end is there twice, or none is there.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such file; write it with --evaluate RUN --json")
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            end = int(row["end"])
            float(row["val/loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise SelectionError(
                f"{path}, line {number}: expected a row of --evaluate --json, found {line[:60]!r}"
            ) from error
        if end in rows:
            raise SelectionError(f"{path}: end {end} is there twice; keep one evaluation a file")
        rows[end] = row
    if not rows:
        raise SelectionError(f"{path}: no rows in it")
    return rows


def main() -> None:
    """Draw the figure and print the table."""
    line = tyro.cli(FigureArguments, args=sys.argv[1:], description=__doc__, use_underscores=True)
    from lawa_jax.report.run_report import report

    print(report(curves(read(line.raw), read(line.averages)), line.title, line.out))


if __name__ == "__main__":
    script.run(main)
