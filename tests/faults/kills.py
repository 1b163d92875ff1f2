"""Commands killed, or refused by the system, at each of their calls of the file system."""

import random
from pathlib import Path

from tests.faults.injection import ERRORS, UNEXPECTED, Outcome, run
from tests.faults.scenarios import SCENARIOS, Broken, Scenario, contents, leftovers, rows


def attack(work: Path, count: int, seed: int, *, kill: bool) -> dict[str, int]:
    """Fail `count` times, spread over scenarios and calls; outcomes by name.

    Raises:
      Broken: a promise did not hold; says at which call of which scenario.
    """
    generator = random.Random(seed)
    found: dict[str, int] = {}
    for number, scenario in enumerate(SCENARIOS):
        share = count // len(SCENARIOS) + (number < count % len(SCENARIOS))
        with scenario.prepared(work) as w:
            whole = run(scenario.argv(w), str(w))
            if whole.code:
                raise Broken(f"{scenario.name} fails by itself: {whole.err}")
            wanted, table = scenario.digests(w), rows(w)
        points = list(range(1, whole.calls + 1))
        generator.shuffle(points)
        for at in (points * (share // len(points) + 1))[:share]:
            error = 0 if kill else generator.choice(ERRORS)
            try:
                name = _one(scenario, work, at, error, wanted, table)
            except Broken as broken:
                what = "SIGKILL" if kill else f"errno {error}"
                raise Broken(
                    f"{scenario.name}, {what} at call {at} of {whole.calls}, seed {seed}: {broken}"
                ) from broken
            found[name] = found.get(name, 0) + 1
    return found


def _one(
    scenario: Scenario,
    work: Path,
    at: int,
    error: int,
    wanted: dict[str, dict[str, str]],
    table: object,
) -> str:
    with scenario.prepared(work) as w:
        sources = contents(w / "run")
        old = [scenario.digests(w)[n] for n in scenario.outputs if (w / n).exists()]
        outcome = run(scenario.argv(w), str(w), at=at, error=error)
        _check_told(outcome, error)
        scenario.check(w, sources, allowed=[*wanted.values(), *old])
        # The same command goes on, or says that it is done already.
        again = run(scenario.argv(w), str(w))
        refused = again.code == 2 and "already exists" in again.err
        if again.code and not (refused and all((w / n).exists() for n in scenario.outputs)):
            raise Broken(f"the same command then fails: {again.err}")
        if scenario.digests(w) != wanted:
            raise Broken("the same command then gives other averages")
        if rows(w) != table:
            raise Broken("the same command then gives other figures")
        scenario.check(w, sources, allowed=list(wanted.values()))
        if leftovers(w) and not refused:
            raise Broken(f"left behind: {leftovers(w)}")
        return "survived" if outcome.code == 0 else f"exit {outcome.code}"


def _check_told(outcome: Outcome, error: int) -> None:
    if not error:
        return
    if "Traceback" in outcome.err or outcome.code == UNEXPECTED:
        raise Broken(f"a traceback: {outcome.err}")
    messages = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if outcome.code and len(messages) != 1:
        raise Broken(f"expected one message, found {outcome.err!r}")
