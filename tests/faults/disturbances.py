"""Commands that are disturbed, not stopped: short transfers, changing sources, second writers."""

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.faults.injection import UNEXPECTED, run
from tests.faults.scenarios import SCENARIOS, Broken, contents

FOREIGN = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import numpy as np, orbax.checkpoint as ocp
with ocp.CheckpointManager(sys.argv[1]) as manager:
    for step in (1, 2, 3):
        tree = {"params": {"w": np.full((6, 5), step, np.float32), "b": np.arange(3.0) * step}}
        manager.save(step, args=ocp.args.StandardSave(tree))
"""


def attack(work: Path, count: int, seed: int) -> dict[str, int]:
    """`count` disturbances; outcomes by name.

    Raises:
      Broken: a promise did not hold.
    """
    generator = random.Random(seed)
    found: dict[str, int] = {}
    kinds = [_short, _synced, _changed, _raced, _foreign]
    for number in range(count):
        name = kinds[number % len(kinds)](work, generator)
        found[name] = found.get(name, 0) + 1
    return found


def _short(work: Path, generator: random.Random) -> str:
    scenario = generator.choice(SCENARIOS)
    with scenario.prepared(work) as w:
        outcome = run(scenario.argv(w), str(w), short=True)
        if outcome.code:
            raise Broken(f"{scenario.name} with short transfers: {outcome.err}")
        short = scenario.digests(w)
    with scenario.prepared(work) as w:
        run(scenario.argv(w), str(w))
        if short != scenario.digests(w):
            raise Broken(f"{scenario.name} with short transfers gives other averages")
    return "short transfers: the same"


def _synced(work: Path, generator: random.Random) -> str:
    scenario = generator.choice(SCENARIOS)
    with scenario.prepared(work) as w:
        outcome = run(scenario.argv(w), str(w), syncs=True)
        if outcome.code:
            raise Broken(f"{scenario.name}: {outcome.err}")
    return "published: all synced before"


def _changed(work: Path, generator: random.Random) -> str:
    """A source that another program writes to while it is read."""
    scenario = SCENARIOS[0]
    with scenario.prepared(work) as w:
        whole = run(scenario.argv(w), str(w))
        wanted = scenario.digests(w)
    with scenario.prepared(work) as w:
        chunk = generator.choice(sorted((w / "run" / "epochs").glob("[345]/model/params.*/0*")))

        def change() -> None:
            content = bytearray(chunk.read_bytes())
            content[generator.randrange(len(content))] ^= 1
            chunk.write_bytes(content)

        at = generator.randrange(1, whole.calls)
        outcome = run(scenario.argv(w), str(w), at=at, meanwhile=change)
        if outcome.code == 0 and scenario.digests(w) != wanted:
            raise Broken(f"{chunk.name} changed at call {at}, and the average with it")
        if outcome.code not in (0, 3) or "Traceback" in outcome.err:
            raise Broken(f"{chunk.name} changed at call {at}: {outcome.err}")
    return "changed source: " + ("noticed" if outcome.code else "read before")


def _raced(work: Path, generator: random.Random) -> str:
    """Two processes that make the same output at once."""
    scenario = generator.choice([s for s in SCENARIOS if s.name in ("average", "sweep")])
    with scenario.prepared(work) as w:
        sources = contents(w / "run")
        command = [sys.executable, "-m", "lawa_jax.cli.main", *scenario.argv(w)]
        both = [
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            for _ in range(2)
        ]
        ends = [(process.communicate()[1], process.returncode) for process in both]
        if sorted(code for _, code in ends) not in ([0, 0], [0, 2]):
            raise Broken(f"two writers of {scenario.name}: {ends}")
        wanted = scenario.digests(w)
        scenario.check(w, sources, allowed=list(wanted.values()))
    return "two writers: one average"


def _foreign(work: Path, generator: random.Random) -> str:
    """A flipped bit in a checkpoint that somebody else wrote, without digests."""
    folder = work / "foreign"
    if not folder.exists():
        subprocess.run(
            [sys.executable, "-c", FOREIGN, str(folder)], check=True, capture_output=True
        )
    path = generator.choice(
        sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    )
    healthy = path.read_bytes()
    damaged = bytearray(healthy)
    damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    path.write_bytes(damaged)
    try:
        outcome = run(["average", str(folder), "-k", "3", "--dry-run"], str(work))
        if outcome.code == 0:
            outcome = run(["diff", f"{folder}@1", f"{folder}@3"], str(work))
    finally:
        path.write_bytes(healthy)
    if outcome.code in (1, UNEXPECTED) or outcome.code < 0 or "Traceback" in outcome.err:
        raise Broken(f"{os.path.relpath(path, folder)}: {outcome.err}")
    return "foreign: " + ("refused" if outcome.code else "unprotected or harmless")
