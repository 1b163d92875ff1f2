"""Figures of a sweep on disk: one row an average, kept as soon as it is known.

``results.jsonl`` is appended to and synced row by row, so that a killed sweep loses at most the
row it was at; ``results.csv`` is the same table for other programs.
"""

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lawa_jax.errors import ConfigError, OutputExistsError
from lawa_jax.offline.ledger import Ledger
from lawa_jax.trajectory.storage import TMP_MARKER

# The setting that says which code or configuration gave the metrics.
IDENTITY = "evaluator_digest"
LINES, TABLE, FIGURE = "results.jsonl", "results.csv", "results.png"


class Row(NamedTuple):
    """One evaluated average.

    Attributes:
      name: of the average: ``k5-end30-uniform``.
      end: step of the newest checkpoint.
      k: number of checkpoints.
      method: ``uniform``, ``ema:0.9``, ...
      steps: of the checkpoints, oldest first.
      coefficients: one a checkpoint, of sum 1.
      metrics: by name.
      seconds: that evaluating took; 0 where an equal average had been evaluated.
      key: digest of sources, weights, options and evaluator: equal keys have equal metrics.
    """

    name: str
    end: int
    k: int
    method: str
    steps: tuple[int, ...]
    coefficients: tuple[float, ...]
    metrics: dict[str, float]
    seconds: float
    key: str

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        # JSON has no NaN; float() reads these words.
        metrics = {n: v if math.isfinite(v) else str(v) for n, v in self.metrics.items()}
        return {**self._asdict(), "metrics": metrics}


class Results:
    """The rows in a directory; of rows with one name the last counts.

    Args:
      directory: a local directory, made if missing.
      setting: what all rows share: run, evaluator, options. JSON.
      overwrite: begin anew where rows of another setting are.

    Raises:
      OutputExistsError: rows of another setting or files of somebody else are there, or another
        process is writing.
    """

    def __init__(
        self, directory: Path, setting: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.directory = directory
        self.rows: dict[str, Row] = {}
        self._ledger = Ledger(directory / LINES)
        try:
            self._open(dict(setting), overwrite)
        except BaseException:
            self._ledger.close()
            raise

    def _open(self, setting: dict[str, Any], overwrite: bool) -> None:
        heading, entries = self._ledger.read()
        old = (heading or {}).get("setting")
        if not isinstance(old, dict):
            self._refuse_strangers()
        elif not overwrite:
            rows = [row for row in map(_row, entries) if row is not None]
            if rows:
                # Without a row nothing would be lost: an evaluator that failed may be mended.
                self._check_setting(old, setting)
            self.rows = {row.name: row for row in rows}
        self._ledger.begin({"setting": setting}, map(Row.as_json, self.rows.values()))

    def _refuse_strangers(self) -> None:
        """Without a header of ours, files of our names are the user's own."""
        for name in (LINES, TABLE, FIGURE):
            if (self.directory / name).exists():
                raise OutputExistsError(
                    f"{self.directory / name} exists, but there is no {LINES} that begins as the "
                    "results of a sweep do; choose another directory, or move it away"
                )

    def _check_setting(self, old: dict[str, Any], setting: dict[str, Any]) -> None:
        for name, value in setting.items():
            if old.get(name) != value:
                raise OutputExistsError(
                    f"{self.directory} holds results {_difference(name, old.get(name), value)}; "
                    "choose another directory, or begin anew with --overwrite"
                )

    def known(self, key: str) -> dict[str, float] | None:
        """Metrics of an average with the same key."""
        return next((dict(r.metrics) for r in self.rows.values() if r.key == key), None)

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns."""
        if clash := sorted(row.metrics.keys() & set(Row._fields)):
            raise ConfigError(
                f"a metric is named {clash[0]!r} like a column of the results; give it another name"
            )
        self._ledger.append(row.as_json())
        self.rows[row.name] = row
        self._write_table()

    def close(self) -> None:
        """Let others write."""
        self._ledger.close()

    def _write_table(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row.metrics))
        aside = self.directory / f"{TABLE}{TMP_MARKER}"
        with aside.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["name", "end", "k", "method", *names, "seconds", "steps", "coefficients"]
            )
            for row in sorted(self.rows.values(), key=lambda row: (row.end, row.k)):
                writer.writerow(
                    [
                        row.name,
                        row.end,
                        row.k,
                        row.method,
                        *(row.metrics.get(name, "") for name in names),
                        f"{row.seconds:.3f}",
                        " ".join(map(str, row.steps)),
                        " ".join(map(repr, row.coefficients)),
                    ]
                )
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.directory / TABLE)


def _difference(name: str, old: Any, new: Any) -> str:
    if name != IDENTITY:
        return f"with another {name}: {old!r}, now {new!r}"
    return (
        "of the same evaluator with other code or settings (its file, --set or the run's "
        f"configuration changed: digest {str(old)[:12]}, now {str(new)[:12]})"
    )


def _row(entry: Mapping[str, Any]) -> Row | None:
    """The row of an entry; None where it was damaged, and so is evaluated again."""
    try:
        fields = {name: entry[name] for name in Row._fields}
        fields["steps"] = tuple(map(int, entry["steps"]))
        fields["coefficients"] = tuple(map(float, entry["coefficients"]))
        fields["metrics"] = {str(n): float(value) for n, value in entry["metrics"].items()}
        return Row(**fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
