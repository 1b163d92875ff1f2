"""Figures of a sweep on disk: one row an average, kept as soon as it is known.

``results.jsonl`` is appended to and synced row by row, so that a killed sweep loses at most the
row it was at; ``results.csv`` is the same table for other programs.
"""

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lawa_jax.errors import ConfigError, CorruptDataError, OutputExistsError
from lawa_jax.output.staging import Lock
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


class Results:
    """The rows in a directory; of rows with one name the last counts.

    Args:
      directory: a local directory, made if missing.
      setting: what all rows share: run, evaluator, options. JSON.
      overwrite: begin anew where rows of another setting are.

    Raises:
      OutputExistsError: rows of another setting or files of somebody else are there, or another
        process is writing.
      CorruptDataError: rows that are there cannot be read.
    """

    def __init__(
        self, directory: Path, setting: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.directory = directory
        self.rows: dict[str, Row] = {}
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(directory)
        except BlockingIOError:
            raise OutputExistsError(
                f"another process is writing results into {directory}; wait for it, or choose "
                "another directory"
            ) from None
        self._path = directory / LINES
        try:
            self._open(dict(setting), overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, setting: dict[str, Any], overwrite: bool) -> None:
        # What a kill cut short is left out, and written over.
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []
        if not overwrite and not (lines and _is_header(lines[0])):
            self._refuse_strangers()
        if lines and not overwrite:
            self.rows = {row.name: row for row in self._read(lines, setting)}
        else:
            lines = [json.dumps({"setting": setting}).encode()]
        _replace(self._path, b"".join(line + b"\n" for line in lines))
        self._file = self._path.open("ab", buffering=0)

    def _refuse_strangers(self) -> None:
        """Without a header of ours, files of our names are the user's own."""
        for name in (LINES, TABLE, FIGURE):
            if (self.directory / name).exists():
                raise OutputExistsError(
                    f"{self.directory / name} exists, but there is no {LINES} that begins as the "
                    "results of a sweep do; choose another directory, or replace it with "
                    "--overwrite"
                )

    def _read(self, lines: list[bytes], setting: dict[str, Any]) -> list[Row]:
        try:
            head, *entries = (json.loads(line) for line in lines)
            old = dict(head["setting"])
            rows = [_row(entry) for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(
                f"{self._path}: expected results of a sweep, found something else ({error}); "
                "choose another directory"
            ) from error
        for name, value in setting.items():
            if old.get(name) != value:
                raise OutputExistsError(
                    f"{self.directory} holds results {_difference(name, old.get(name), value)}; "
                    "choose another directory, or begin anew with --overwrite"
                )
        return rows

    def known(self, key: str) -> dict[str, float] | None:
        """Metrics of an average with the same key."""
        return next((dict(r.metrics) for r in self.rows.values() if r.key == key), None)

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns."""
        if clash := sorted(row.metrics.keys() & set(Row._fields)):
            raise ConfigError(
                f"a metric is named {clash[0]!r} like a column of the results; give it another name"
            )
        entry = {**row._asdict(), "metrics": {n: _plain(v) for n, v in row.metrics.items()}}
        self._file.write(json.dumps(entry).encode() + b"\n")
        os.fsync(self._file.fileno())
        self.rows[row.name] = row
        self._write_table()

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        self._lock.release()

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


def _is_header(line: bytes) -> bool:
    try:
        head = json.loads(line)
    except ValueError:
        return False
    return isinstance(head, dict) and isinstance(head.get("setting"), dict)


def _difference(name: str, old: Any, new: Any) -> str:
    if name != IDENTITY:
        return f"with another {name}: {old!r}, now {new!r}"
    return (
        "of the same evaluator with other code or settings (its file, --set or the run's "
        f"configuration changed: digest {str(old)[:12]}, now {str(new)[:12]})"
    )


def _row(entry: dict[str, Any]) -> Row:
    fields = {name: entry[name] for name in Row._fields}
    fields["steps"], fields["coefficients"] = tuple(entry["steps"]), tuple(entry["coefficients"])
    fields["metrics"] = {name: float(value) for name, value in entry["metrics"].items()}
    return Row(**fields)


def _plain(value: float) -> float | str:
    # JSON has no NaN; float() reads these words.
    return value if math.isfinite(value) else str(value)


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + TMP_MARKER)
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
