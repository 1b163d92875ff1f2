import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from lawa_jax.errors import OutputExistsError
from lawa_jax.offline import streaming
from lawa_jax.offline.journal import Journal
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, sweep_recipes
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def tree(seed):
    generator = np.random.default_rng(seed)
    layers = {str(i): generator.standard_normal(3, np.float32) for i in range(12)}
    kernel = generator.standard_normal((37, 11), np.float32)
    return {"params": {"kernel": kernel, "layers": layers}, "step": np.int64(seed)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    for step in range(1, 9):
        write_checkpoint(run / "epochs" / str(step), tree(step))
    return run


def assert_same_bits(ours, theirs):
    ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert np.asarray(leaf).tobytes() == np.asarray(theirs[path]).tobytes(), path


def test_two_passes_never_share_a_journal(tmp_path):
    first = Journal(tmp_path / "journal", {"jobs": 1})
    with pytest.raises(OutputExistsError, match="another process is writing into"):
        Journal(tmp_path / "journal", {"jobs": 2})
    first.close()
    Journal(tmp_path / "journal", {"jobs": 2}).complete()
    assert not (tmp_path / "journal").exists()


def test_a_journal_whose_first_write_failed_is_begun_anew(tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "journal.jsonl.orbax-checkpoint-tmp").write_bytes(b'{"half')
    Journal(folder, {"jobs": 1}).complete()
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("somebody else's")
    with pytest.raises(OutputExistsError, match=r"holds notes\.txt"):
        Journal(folder, {"jobs": 1})


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    done = streaming.Done("w", 0, (1,), (2,))
    first = Journal(tmp_path / "journal", {})
    first.append(done)
    first.close()
    with (tmp_path / "journal" / "journal.jsonl").open("a") as file:
        file.write('{"block": ["w", 1], "re')
    second = Journal(tmp_path / "journal", {})
    assert second.finished == {("w", 0): done}
    second.append(done._replace(number=1))
    second.close()
    third = Journal(tmp_path / "journal", {})
    assert third.finished.keys() == {("w", 0), ("w", 1)}
    third.complete()


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"block": 7}', '{"block": ["w", 1]}', "\x00", '{"block": [1, "x"]}']
)
def test_a_damaged_line_is_dropped_and_the_others_count(tmp_path, damage):
    first = Journal(tmp_path / "journal", {})
    for number in range(3):
        first.append(streaming.Done("w", number, (1,), (2,)))
    first.close()
    path = tmp_path / "journal" / "journal.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = damage
    path.write_text("\n".join(lines))
    second = Journal(tmp_path / "journal", {})
    assert second.finished.keys() == {("w", 0), ("w", 2)}
    second.complete()


@pytest.mark.parametrize(
    ("damage", "forget"), [(None, False), ("*kernel/0.0", False), ("*kernel/0.0", True)]
)
def test_an_interrupted_sweep_goes_on_and_repeats_at_most_what_was_in_flight(
    run, tmp_path, monkeypatch, damage, forget
):
    recipes = sweep_recipes(run, ks=[2, 3], ends=[6, 8])
    outs, journal = [tmp_path / recipe.name for recipe in recipes], tmp_path / ".journal"
    monkeypatch.setattr("lawa_jax.offline.plan.BLOCK_BYTES", 64)
    plan = prepare(recipes).plan
    total = sum(1 for name in plan.specs for _ in plan.blocks(name))
    original, seen = streaming._Pass.block, Counter()

    def dying(self, lane, name, number, index):
        if sum(seen.values()) == 10:
            raise KeyboardInterrupt
        seen[name, number] += 1
        original(self, lane, name, number, index)

    monkeypatch.setattr(streaming._Pass, "block", dying)
    options = AveragingOptions(threads=1)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipes, options).written(outs, journal=journal)
    assert list_steps(tmp_path) == []
    assert not any(out.exists() for out in outs)
    monkeypatch.setattr(
        streaming._Pass, "block",
        lambda self, lane, name, number, index: (
            seen.update([(name, number)]), original(self, lane, name, number, index)
        )[1],
    )  # fmt: skip
    if damage is not None:
        chunk = sorted(journal.rglob(damage))[0]
        assert chunk.stat().st_size
        chunk.unlink() if forget else chunk.write_bytes(b"\xff" * chunk.stat().st_size)
    prepare(recipes, options).written(outs, journal=journal)
    assert len(seen) == total
    # A staged block that is not what the journal says was lost, and is made again.
    assert (sum(seen.values()) == total) == (damage is None)
    assert not journal.exists()
    for recipe, out in zip(recipes, outs, strict=True):
        assert_same_bits(open_checkpoint(out).read_tree(), prepare([recipe]).in_memory()[0].tree)


def test_a_journal_of_another_sweep_is_not_continued(run, tmp_path, monkeypatch):
    recipes = sweep_recipes(run, ks=[2], ends=[6, 8])
    outs, journal = [tmp_path / recipe.name for recipe in recipes], tmp_path / ".journal"
    with monkeypatch.context() as patch:
        patch.setattr(
            "lawa_jax.output.StepWriter.finish",
            lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            prepare(recipes).written(outs, journal=journal)
    other = sweep_recipes(run, ks=[3], ends=[6, 8])
    outs = [tmp_path / recipe.name for recipe in other]
    prepare(other).written(outs, journal=journal)
    assert_same_bits(open_checkpoint(outs[0]).read_tree(), prepare(other[:1]).in_memory()[0].tree)


KILLED = """
    import os, sys
    from pathlib import Path
    from lawa_jax.output.step_writer import StepWriter
    from lawa_jax.offline.recipe import sweep_recipes
    from lawa_jax.offline.prepare import prepare
    run, folder, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    calls = 0
    original = getattr(StepWriter, moment)
    def killing(self, *args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[4]):
            os.kill(os.getpid(), 9)
        return original(self, *args, **kwargs)
    setattr(StepWriter, moment, killing)
    recipes = sweep_recipes(run, ks=[2, 3], ends=[6, 8])
    outs = [folder / recipe.name for recipe in recipes]
    prepare(recipes).written(outs, journal=folder / ".journal")
"""


@pytest.mark.parametrize(
    ("moment", "call"), [("write", 1), ("write", 17), ("finish", 1), ("finish", 3)]
)
def test_kill_9_leaves_nothing_that_looks_finished_and_the_sweep_goes_on(
    run, tmp_path, moment, call
):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), run, tmp_path, moment, str(call)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    recipes = sweep_recipes(run, ks=[2, 3], ends=[6, 8])
    outs = [tmp_path / recipe.name for recipe in recipes]
    expected = [prepare([recipe]).in_memory()[0].tree for recipe in recipes]
    finished = [out for out in outs if out.exists()]
    assert len(finished) == (call - 1 if moment == "finish" else 0)
    for out, tree_ in zip(outs, expected, strict=True):
        if out in finished:
            assert_same_bits(open_checkpoint(out).read_tree(), tree_)
    prepare(recipes).written(outs, journal=tmp_path / ".journal")
    for out, tree_ in zip(outs, expected, strict=True):
        assert_same_bits(open_checkpoint(out).read_tree(), tree_)
    assert_same_bits(open_checkpoint(run, step=8, include=["*"]).read_tree(), tree(8))
