import json

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import Checkpoint, open_checkpoint


def steps_of(finished):
    return [int(s["checkpoint"].rpartition("@")[2]) for s in finished.json["sources"]]


def weights_of(finished):
    return [s["coefficient"] for s in finished.json["sources"]]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], [6, 7, 8, 9, 10]),
        (["-k", "3"], [8, 9, 10]),
        (["-k", "3", "--end", "7"], [5, 6, 7]),
        (["--steps", "2:10:4"], [2, 6, 10]),
        (["--steps", "9,1"], [1, 9]),
        (["--window", "1%"], [9, 10]),
        (["--window", "25%", "--end", "9"], [7, 8, 9]),
        (["--best", "3", "--metric", "val/top1", "--mode", "max"], [3, 4, 5]),
        (["--best", "2", "--metric", "val/loss"], [4, 5]),
    ],
)
def test_which_checkpoints(lawa, run, options, steps):
    finished = lawa("average", run, *options, "--dry-run", "--json")
    assert (finished.code, finished.err) == (0, "")
    assert steps_of(finished) == steps


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("linear", [1 / 6, 2 / 6, 3 / 6]),
        ("ema:0.5", [0.25, 0.25, 0.5]),
        ("decay:linear", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_which_weights(lawa, run, method, weights):
    finished = lawa("average", run, "-k", "3", "--method", method, "--dry-run", "--json")
    assert weights_of(finished) == pytest.approx(weights, rel=1e-15)


def test_a_dry_run_says_exactly_what_then_happens(lawa, run, tmp_path, model_bytes, monkeypatch):
    read = []
    original = Checkpoint.read

    def counting(self, name, index, out):
        if str(run) in self.label:
            read.append(out.nbytes)
        return original(self, name, index, out)

    monkeypatch.setattr(Checkpoint, "read", counting)
    out = tmp_path / "out"
    planned = lawa("average", run, "-k", "4", "-o", out, "--dry-run", "--json").json
    assert not out.exists()
    assert not read
    assert planned["bytes_to_read"] == 4 * model_bytes
    assert planned["bytes_to_write"] == model_bytes
    assert planned["leaves"] == 15
    assert 0 < planned["memory_bound"] <= 1 << 30
    done = lawa("average", run, "-k", "4", "-o", out, "--json").json
    assert sum(read) == done["bytes_read"] == planned["bytes_to_read"]
    chunks = [p for p in (out / "model").rglob("*") if p.is_file() and p.name[0].isdigit()]
    assert sum(p.stat().st_size for p in chunks) == done["bytes_written"] == model_bytes
    assert done["sources"] == planned["sources"]
    for key in ("method", "leaves", "memory_bound", "statistics", "bn"):
        assert done[key] == planned[key]


def test_the_plan_for_people(lawa, run):
    finished = lawa("average", run, "-k", "2", "--dry-run")
    assert finished.out.splitlines()[1].split() == [f"{run}@9", "0.500000"]
    assert "uniform average of 2 checkpoints, 15 leaves; reads 1.3 kB" in finished.out
    assert "memory at most" in finished.out


def test_the_output_is_the_average_and_any_orbax_loads_it(lawa, run, tmp_path):
    finished = lawa("average", run, "-k", "3", "-o", tmp_path / "out")
    assert finished.code == 0
    assert finished.out.startswith(f"wrote {tmp_path / 'out'}: ")
    expected = average_checkpoints(run, k=3)
    found = ocp.PyTreeCheckpointer().restore(tmp_path / "out" / "model")
    np.testing.assert_array_equal(
        found["params"]["dense"]["kernel"], expected["params"]["dense"]["kernel"]
    )
    np.testing.assert_array_equal(found["batch_stats"]["bn"]["mean"], np.full(4, 9, np.float32))


def test_the_policy_for_batch_statistics_is_printed(lawa, run, tmp_path):
    latest = lawa("average", run, "-k", "3", "--bn", "latest", "-o", tmp_path / "latest")
    assert "2 leaves look like BatchNorm statistics" in latest.err
    assert "taken from the newest checkpoint (--bn latest)" in latest.err
    assert "lawa_jax.recalibrate(apply_fn, tree, batches)" in latest.err
    # The default, as in Python: the newest's would be the worst for averaged weights.
    average = lawa("average", run, "-k", "3", "-o", tmp_path / "average")
    assert "averaged like weights (--bn average)" in average.err
    mean = open_checkpoint(tmp_path / "average").read_leaf("batch_stats/bn/mean")
    np.testing.assert_array_equal(mean, np.full(4, 9, np.float32))
    assert "BatchNorm" not in lawa("average", run, "--exclude", "batch_stats", "--dry-run").err


def test_any_weighted_set(lawa, run, foreign, tmp_path):
    sources = [f"{run}@2:0.25", f"{run}@8:0.75"]
    assert weights_of(lawa("average", *sources, "--dry-run", "--json")) == [0.25, 0.75]
    assert lawa("average", *sources, "-o", tmp_path / "out").code == 0
    one, other = (
        open_checkpoint(run, step=s).read_leaf("params/dense/bias").astype(np.float64)
        for s in (2, 8)
    )
    found = open_checkpoint(tmp_path / "out").read_leaf("params/dense/bias")
    np.testing.assert_array_equal(found, (0.25 * one + 0.75 * other).astype(np.float32))


def test_single_checkpoints_and_odd_paths(lawa, run, tmp_path):
    lawa("average", f"{run}@2", "-o", tmp_path / "one")
    assert lawa("diff", f"{run}@2", tmp_path / "one").out.startswith("15 leaves are identical, 0")
    lawa("average", f"{tmp_path / 'one'}:1", f"{run}@4:0", "-o", tmp_path / "same")
    odd = tmp_path / "me@host" / "run:1"
    odd.parent.mkdir()
    odd.symlink_to(run)
    assert steps_of(lawa("average", odd, "-k", "2", "--dry-run", "--json")) == [9, 10]
    assert steps_of(lawa("average", f"{odd}@3", "--dry-run", "--json")) == [3]


def test_optimizer_state_is_averaged_only_when_asked(lawa, foreign, tmp_path):
    lawa("average", foreign, "-k", "2", "-o", tmp_path / "out")
    assert list(open_checkpoint(tmp_path / "out").leaves) == ["params/dense/kernel"]
    include = ["--include", "params", "--include", "opt_state/*/mu/*"]
    lawa("average", foreign, "-k", "2", *include, "-o", tmp_path / "asked")
    assert sorted(open_checkpoint(tmp_path / "asked", include="*").leaves) == [
        "opt_state/0/mu/dense/kernel", "params/dense/kernel",
    ]  # fmt: skip


def test_optimizer_state_is_known_without_a_branch_of_parameters(lawa, tmp_path):
    """As Flax NNX states are saved: layers beside an optimizer."""
    state = {"conv": {"kernel": np.ones(3, np.float32)}, "optimizer": {"mu": np.ones(3)}}
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / str(step), state)
    lawa("average", tmp_path / "run", "-k", "2", "-o", tmp_path / "out")
    assert list(open_checkpoint(tmp_path / "out", include="*").leaves) == ["conv/kernel"]


def test_items_dtypes_and_patterns(lawa, foreign, run, tmp_path):
    options = ["-k", "2", "-o"]
    assert lawa("average", foreign, "--item", "ema", *options, tmp_path / "ema").code == 0
    assert open_checkpoint(tmp_path / "ema").read_leaf("params/dense/kernel")[0, 0] < 0
    # 1.0078125 and 1.015625 are neighbours in bfloat16: their mean is between them.
    lawa("average", foreign, "--dtype", "float32", *options, tmp_path / "wide")
    wide = open_checkpoint(tmp_path / "wide").read_leaf("params/dense/kernel")
    assert (wide.dtype, wide[0, 0]) == (np.float32, np.float32(1.01171875))
    lawa("average", foreign, *options, tmp_path / "narrow")
    narrow = open_checkpoint(tmp_path / "narrow").read_leaf("params/dense/kernel")
    assert narrow.dtype == ml_dtypes.bfloat16
    lawa("average", run, "--include", "params", "--exclude", "*/layers", *options, tmp_path / "p")
    assert sorted(open_checkpoint(tmp_path / "p").leaves) == [
        "params/dense/bias", "params/dense/kernel",
    ]  # fmt: skip


def test_existing_outputs_are_refused(lawa, run, tmp_path):
    out = tmp_path / "out"
    lawa("average", run, "-k", "2", "-o", out)
    before = (out / "record" / "metadata").read_text()
    refused = lawa("average", run, "-k", "3", "-o", out)
    assert refused.code == 2
    assert f"{out} already exists and is never replaced silently" in refused.err
    assert (out / "record" / "metadata").read_text() == before
    assert lawa("average", run, "-k", "3", "-o", out, "--overwrite").code == 0
    assert len(json.loads((out / "record" / "metadata").read_text())["sources"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "11"], "only 10 exist up to there: 1..10"),
        (["-k", "0"], "expected >= 1, found 0"),
        (["--end", "77"], "there is no checkpoint 77"),
        (["--steps", "5:90:10"], "checkpoints that do not exist: 15..85 by 10"),
        (["--steps", "nine"], "expected steps as"),
        (["--window", "0%"], "expected a share of the run"),
        (["--window", "5"], "expected a share of the run"),
        (["--best", "2"], "--best needs --metric"),
        (["--best", "2", "--metric", "top5"], "saved metrics: val/loss, val/top1"),
        (["-k", "2", "--window", "1%"], "--window and -k contradict each other"),
        (["--steps", "1,2", "--end", "2"], "leave --end out"),
        (["--method", "median"], "median"),
        (["--item", "nope"], "has no item 'nope'; it holds model"),
        (["--include", "nope"], "no leaf matches 'nope'"),
        (["--dtype", "int32"], "dtype: expected float32"),
        (["--dtype", "float33"], "dtype: expected float32"),
        (["--memory", "lots"], "expected an amount of memory such as 1GiB"),
        (["--threads", "0"], "threads: expected >= 1"),
        ([], "say where to write the average"),
    ],
)
def test_mistakes_are_explained(lawa, run, options, message):
    finished = lawa("average", run, *options)
    assert finished.code == 2
    assert finished.err.startswith("error: ")
    assert message in finished.err
    assert finished.out == ""


def test_mistakes_about_weighted_sets(lawa, run):
    for sources, message in (
        ([f"{run}@1:0.5", f"{run}@2"], "has no weight"),
        ([f"{run}@1:0.5", f"{run}@2:0.7"], "weights sum to 1.2, expected 1"),
        ([f"{run}@1", f"{run}@99"], "has no committed step 99; it has 1, 2, 3, 4, 5, 6, ..., 10"),
        ([f"{run}@1", "-k", "2"], "are the whole selection"),
        ([f"{run}@newest"], "expected RUN@STEP with a whole number"),
        ([], "name a run to average from"),
    ):
        finished = lawa("average", *sources)
        assert (finished.code, message in finished.err) == (2, True), finished.err


def test_runs_of_other_models_are_a_mismatch(lawa, run, foreign, tmp_path):
    finished = lawa("average", f"{run}@1", f"{foreign}@10", "-o", tmp_path / "out")
    assert finished.code == 2
    assert "Only checkpoints of one model can be averaged" in finished.err
    assert list(tmp_path.iterdir()) == []


def test_sources_without_checksums_are_said_to_be_unprotected(lawa, run, foreign, tmp_path):
    theirs = lawa("average", foreign, "-k", "2", "-o", tmp_path / "theirs")
    assert "note: 2 of 2 checkpoints carry no checksums" in theirs.err
    assert "carry no checksums" not in lawa("average", run, "-k", "2", "--dry-run").err
    both = lawa("average", f"{run}@1", f"{run}@2", "--dry-run")
    assert "carry no checksums" not in both.err
