"""`lawa ls RUN` lists the checkpoints of a run."""

import dataclasses
import time
from collections import Counter
from typing import Any

from lawa_jax.cli.options import Leaves, Path, print_json
from lawa_jax.display import human, table
from lawa_jax.errors import LawaError
from lawa_jax.trajectory import Run, parse_address

_METRICS_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ls(Leaves):
    """List the checkpoints of a run with their steps, items, parameters, bytes, dtypes, age and
    metrics."""

    run: Path
    """A run directory, or a directory of steps."""
    json: bool = False
    """Print one JSON document instead of text."""

    def __call__(self) -> int | None:
        """Print one line per step. If a step cannot be read, its line says why, and the exit code
        is 3."""
        path, step = parse_address(self.run)
        run = Run(path)
        # Without steps it may be a checkpoint itself, an average for instance; or an error says so.
        steps: list[int | None] = list(run.steps) if step is None else [step]
        if not steps:
            run.open(item=self.item, include=self.include, exclude=self.exclude)
            steps = [None]
        found = [self._describe(run, s) for s in steps]
        if self.json:
            print_json(found)
        else:
            print(_table(found))
            if step is None and run.averages:
                names = ", ".join(path.name for path in run.averages)
                print(f"beside them, averages that are no steps of the run: {names}")
        return 3 if any("error" in row for row in found) else None

    def _describe(self, run: Run, step: int | None) -> dict[str, Any]:
        try:
            checkpoint = run.open(step, item=self.item, include=self.include, exclude=self.exclude)
            metrics = checkpoint.metrics
        except LawaError as error:
            return {"step": step, "error": str(error)}
        dtypes = Counter({str(s.dtype): 0 for s in checkpoint.leaves.values()})
        for spec in checkpoint.leaves.values():
            dtypes[str(spec.dtype)] += spec.size
        return {
            "step": checkpoint.step,
            "items": run.items(checkpoint.step_dir) or ["."],
            "leaves": len(checkpoint.leaves),
            "parameters": sum(spec.size for spec in checkpoint.leaves.values()),
            "bytes": checkpoint.nbytes,
            "dtypes": [name for name, _ in dtypes.most_common()],
            "age_seconds": round(time.time() - checkpoint.path.stat().mtime),
            "metrics": metrics,
            "selection": checkpoint.selection.reason,
            "left_out": len(checkpoint.selection.left_out),
        }


def _table(found: list[dict[str, Any]]) -> str:
    good = [row for row in found if "error" not in row]
    metrics = list(dict.fromkeys(m for row in good for m in row["metrics"]))
    # Validation figures say most; what does not fit on a line is in --json.
    metrics = sorted(metrics, key=lambda m: not m.startswith("val"))[:_METRICS_SHOWN]
    head = ["step", "items", "leaves", "parameters", "bytes", "dtypes", "age", *metrics]
    body = []
    for row in found:
        if "error" in row:
            body.append([_step(row), *["?"] * (len(head) - 1)])
            continue
        body.append(
            [
                _step(row),
                ",".join(row["items"]),
                str(row["leaves"]),
                f"{row['parameters']:,}",
                human(row["bytes"]),
                ",".join(row["dtypes"]),
                _age(row["age_seconds"]),
                *(f"{row['metrics'][m]:.6g}" if m in row["metrics"] else "-" for m in metrics),
            ]
        )
    lines = [table(head, body)]
    lines += [f"step {_step(row)}: {row['error']}" for row in found if "error" in row]
    if good and good[-1]["left_out"]:
        lines.append(
            f"counted: {good[-1]['selection']} ({good[-1]['left_out']} leaves left out; "
            "--include '*' counts all)"
        )
    return "\n".join(lines)


def _step(row: dict[str, Any]) -> str:
    return "-" if row["step"] is None else str(row["step"])


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
