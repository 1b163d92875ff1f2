"""Commands that are made to fail, and what must hold whatever happened to them."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lawa_jax.errors import LawaError
from lawa_jax.offline.verify import verify
from lawa_jax.output import write_checkpoint
from lawa_jax.search.results import Results, Row
from lawa_jax.trajectory import Run, open_checkpoint
from lawa_jax.trajectory.storage import TMP_MARKER

STEPS = 5
EVALUATOR = "def score(tree):\n    return float(tree['params']['w'].sum())\n"


class Broken(AssertionError):
    """A promise that did not hold."""


def model(step: int) -> dict[str, object]:
    generator = np.random.default_rng(step)
    return {
        "params": {
            "w": generator.standard_normal((6, 5)).astype(np.float32),
            "b": generator.standard_normal(3),
            "half": generator.standard_normal(4).astype(np.float16),
        },
        "count": np.int64(step),
    }


def make_run(run: Path) -> None:
    for step in range(1, STEPS + 1):
        metrics = {"val/loss": 1 / step}
        write_checkpoint(run / "epochs" / str(step), model(step), metrics=metrics)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


class Scenario:
    """One command in a directory of its own.

    Args:
      name: of the scenario.
      argv: of `lawa`; ``{w}`` is the directory.
      outputs: names of the averages that it makes in the directory.
      before: prepares the directory further.
    """

    def __init__(
        self,
        name: str,
        argv: list[str],
        outputs: list[str],
        before: Callable[[Path], None] = lambda w: None,
    ) -> None:
        self.name, self._argv, self.outputs, self._before = name, argv, outputs, before

    def argv(self, w: Path) -> list[str]:
        return [word.format(w=w) for word in self._argv]

    @contextmanager
    def prepared(self, parent: Path) -> Iterator[Path]:
        w = parent / self.name
        shutil.rmtree(w, ignore_errors=True)
        make_run(w / "run")
        (w / "score.py").write_text(EVALUATOR)
        self._before(w)
        yield w
        shutil.rmtree(w)

    def digests(self, w: Path) -> dict[str, dict[str, str]]:
        """Digests of the outputs' leaves, by output."""
        return {name: open_checkpoint(w / name).checksums for name in self.outputs}

    def check(self, w: Path, sources: dict[str, str], *, allowed: list[dict[str, str]]) -> None:
        """What must hold after any failure.

        Args:
          w: the directory.
          sources: `contents` of the run as it was.
          allowed: digests that an output may have: of the new average, of one that was there.

        Raises:
          Broken: it does not.
        """
        if contents(w / "run") != sources:
            raise Broken("the run is not what it was")
        for name in self.outputs:
            if (w / name).exists():
                try:
                    if open_checkpoint(w / name).checksums not in allowed:
                        raise Broken(f"{name} is something else than was asked for")
                    verify(str(w / name))
                except LawaError as error:
                    raise Broken(f"{name} looks finished, but: {error}") from error
        folder = (w / self.outputs[0]).parent if self.outputs else w
        names = {p.name for p in folder.iterdir()} if folder.exists() else set()
        steps = Run(folder).steps if folder.exists() else []
        if steps or any(n for n in names if n.isdigit()):
            raise Broken(f"{folder} has steps: {names}")


def _overwritten(w: Path) -> None:
    from lawa_jax.offline.prepare import prepare
    from lawa_jax.offline.recipe import window_recipe

    prepare([window_recipe(w / "run", k=2, end=2)]).written([w / "out"])


_SWEEP = [f"sweep/k{k}-end{end}-uniform" for end in (4, 5) for k in (1, 3)]
SCENARIOS = (
    Scenario("average", ["average", "{w}/run", "-k", "3", "-o", "{w}/out"], ["out"]),
    Scenario(
        "overwrite",
        ["average", "{w}/run", "-k", "3", "-o", "{w}/out", "--overwrite"],
        ["out"],
        _overwritten,
    ),
    Scenario(
        "sweep",
        ["sweep", "{w}/run", "-k", "1,3", "--end", "4:5", "-o", "{w}/sweep"],
        _SWEEP,
    ),
    Scenario(
        "evaluated",
        ["sweep", "{w}/run", "-k", "1,3", "--end", "4:5", "-o", "{w}/sweep", "--keep",
         "--evaluator", "{w}/score.py:score"],
        _SWEEP,
    ),
)  # fmt: skip


def rows(w: Path) -> dict[str, Row] | None:
    """What an evaluated sweep has entered; None where there is no table."""
    if not (w / "sweep" / "results.jsonl").exists():
        return None
    heading = (w / "sweep" / "results.jsonl").read_text().splitlines()[0]
    import json

    results = Results(w / "sweep", json.loads(heading)["setting"])
    results.close()
    return {name: row._replace(seconds=0.0, key="") for name, row in results.rows.items()}


def leftovers(w: Path) -> list[str]:
    """What a later command should have removed."""
    return [str(p.relative_to(w)) for p in w.rglob(f"*{TMP_MARKER}*")]
