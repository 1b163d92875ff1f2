"""Flipped bits in every file of a run of ours, of an average and of its record."""

import random
from pathlib import Path

import numpy as np

from lawa_jax.errors import LawaError
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, window_recipe
from lawa_jax.offline.verify import verify
from lawa_jax.tree import nested  # noqa: F401
from tests.faults.scenarios import STEPS, Broken, make_run

OPTIONS = AveragingOptions(include=("*",))


def attack(work: Path, count: int, seed: int) -> dict[str, int]:
    """Flip `count` single bits, one at a time; outcomes by name.

    Raises:
      Broken: other numbers without a word, or an error that is none of ours.
    """
    generator = random.Random(seed)
    run, out = work / "flipped" / "run", work / "flipped" / "out"
    if not run.exists():
        make_run(run)
        prepare([window_recipe(run, k=3)], OPTIONS).written([out])
    wanted = _average(run)
    inside = [run / "epochs" / str(s) for s in range(STEPS - 2, STEPS + 1)]
    files = sorted(p for folder in (*inside, out) for p in folder.rglob("*") if p.is_file())
    files = [p for p in files if p.stat().st_size]
    found: dict[str, int] = {}
    for _ in range(count):
        path = generator.choice(files)
        healthy = path.read_bytes()
        at, bit = generator.randrange(len(healthy)), generator.randrange(8)
        damaged = bytearray(healthy)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            name = _outcome(run, out, wanted, path)
        except Broken as broken:
            where = path.relative_to(work / "flipped")
            raise Broken(f"bit {bit} of byte {at} of {where}, seed {seed}: {broken}") from broken
        finally:
            path.write_bytes(healthy)
        found[name] = found.get(name, 0) + 1
    return found


def _average(run: Path) -> dict[str, bytes]:
    recipe = window_recipe(run, k=3)
    prepared = prepare([recipe], OPTIONS)
    tree = prepared.in_memory()[0].tree_in_memory
    return {
        name: np.asarray(_leaf(tree, name)).tobytes() + str(spec).encode()
        for name, spec in prepared.plan.out.items()
    }


def _leaf(tree: object, name: str) -> object:
    for key in name.split("/"):
        tree = tree[key]  # type: ignore[index]
    return tree


def _outcome(run: Path, out: Path, wanted: dict[str, bytes], path: Path) -> str:
    try:
        if out in path.parents:
            verify(str(out))
            return "harmless"
        if _average(run) != wanted:
            raise Broken("other numbers, without a word")
        return "harmless"
    except LawaError:
        return "noticed"
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
