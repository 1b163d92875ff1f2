"""Attack the promises of docs/guarantees.md: python -m tests.faults --minutes 10 --seed 1

Every kind of attack is repeated until the time is over; the seed is printed, and gives the same
attacks again. Exit code 1 where a promise did not hold.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import disturbances, flips, fuzzing, injection, kills
from tests.faults.scenarios import Broken

KINDS = {
    "kill": lambda work, count, seed: kills.attack(work, count, seed, kill=True),
    "error": lambda work, count, seed: kills.attack(work, count, seed, kill=False),
    "flip": flips.attack,
    "fuzz": fuzzing.attack,
    "disturb": disturbances.attack,
}
# Attacks in a round of each kind, so that a round of each takes about as long.
ROUND = {"kill": 20, "error": 20, "flip": 40, "fuzz": 20_000, "disturb": 10}


def attack(kind: str, work: Path, count: int, seed: int) -> dict[str, int]:
    return KINDS[kind](work, count, seed)


def apart(*attacked: object) -> dict[str, int]:
    """`attack` in a process of its own: once TensorStore has read, it lets nobody fork."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(attack, attacked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=0, help="so many of each instead of minutes")
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks of a round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", default=",".join(KINDS))
    line = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if line.seed is None else line.seed
    print(f"seed {seed}", flush=True)
    injection.install()
    totals: dict[str, dict[str, int]] = {kind: {} for kind in line.kinds.split(",")}
    end, number = time.monotonic() + 60 * line.minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        while number < line.rounds if line.rounds else time.monotonic() < end:
            for kind, outcomes in totals.items():
                try:
                    attacks = max(1, int(ROUND[kind] * line.share))
                    found = apart(kind, Path(folder), attacks, seed + number)
                except Broken as broken:
                    print(f"BROKEN {kind}, round {number}: {broken}")
                    return 1
                for name, count in found.items():
                    outcomes[name] = outcomes.get(name, 0) + count
            number += 1
    for kind, outcomes in totals.items():
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items()))
        print(f"{kind}: {sum(outcomes.values()):,} attacks, 0 broken ({told})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
