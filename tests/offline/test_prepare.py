import json
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import lawa_jax
from lawa_jax.errors import (
    CorruptCheckpointError,
    NonFiniteError,
    OutputExistsError,
    SelectionError,
    TreeMismatchError,
)
from lawa_jax.offline.prepare import average_checkpoints, prepare
from lawa_jax.offline.recipe import AveragingOptions, sweep_recipes, weighted_recipe, window_recipe
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import Checkpoint, open_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def tree(seed, dtype=np.float32):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return generator.standard_normal(shape).astype(dtype)

    return {
        "params": {
            "a": {"kernel": normal(37, 11), "bias": normal(11)},
            # Integer keys, of which "10" sorts before "2".
            "layers": {str(i): normal(3) for i in range(12)},
        },
        "batch_stats": {"bn": {"mean": normal(5), "var": np.abs(normal(5))}},
        "step": np.int64(seed),
    }


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
        assert np.asarray(leaf).dtype == np.asarray(theirs[path]).dtype
        assert np.asarray(leaf).tobytes() == np.asarray(theirs[path]).tobytes(), path


def test_the_average_of_a_window_by_hand(tmp_path):
    for step, value in ((1, 1.0), (2, 2.0), (3, 6.0)):
        write_checkpoint(tmp_path / str(step), {"w": np.float32([value, -value])})
    assert average_checkpoints(tmp_path, k=2)["w"].tolist() == [4.0, -4.0]
    assert average_checkpoints(tmp_path, k=2, end=2)["w"].tolist() == [1.5, -1.5]
    assert average_checkpoints(tmp_path, k=3, method="linear")["w"].tolist() == [
        np.float32((1 * 1 + 2 * 2 + 3 * 6) / 6), -np.float32(23 / 6)
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["uniform", "linear", "ema:0.7", "power_ema:0.1", "decay"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_streaming_gives_the_bits_of_the_jitted_average(tmp_path, method, dtype):
    for step in range(1, 5):
        write_checkpoint(tmp_path / str(step), tree(step, dtype))
    recipe = window_recipe(tmp_path, k=4, method=method)
    streamed = average_checkpoints(tmp_path, k=4, method=method, include=["*"])
    with jax.enable_x64(True):
        jitted = lawa_jax.average([tree(step, dtype) for step in range(1, 5)], recipe.weights)
    assert_same_bits(streamed, jitted)


@given(
    k=st.integers(1, 8),
    limit=st.sampled_from([4, 60, 500, 1 << 20]),
    threads=st.integers(1, 4),
    method=st.sampled_from(["uniform", "linear", "ema"]),
)
def test_block_size_and_threads_change_no_bit(run, k, limit, threads, method):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lawa_jax.offline.plan.BLOCK_BYTES", limit)
        found = average_checkpoints(run, k=k, method=method, threads=threads)
    recipe = window_recipe(run, k=k, method=method)
    trees = [open_checkpoint(run, step=s).read_tree() for s in range(9 - k, 9)]
    assert_same_bits(found, lawa_jax.average(trees, recipe.weights))


def test_leaves_are_paired_by_name_and_integers_come_from_the_newest(run):
    found = average_checkpoints(run, k=2, end=5, include=["*"])
    assert found["step"] == 5
    for i in range(12):
        pair = [tree(s)["params"]["layers"][str(i)].astype(np.float64) for s in (4, 5)]
        assert np.array_equal(
            found["params"]["layers"][str(i)], np.mean(pair, axis=0).astype(np.float32)
        )


def test_batch_statistics_are_averaged_or_the_newest(run):
    latest = average_checkpoints(run, k=2, end=5, bn="latest")
    assert_same_bits(latest["batch_stats"], tree(5)["batch_stats"])
    averaged = average_checkpoints(run, k=2, end=5)
    assert not np.array_equal(averaged["batch_stats"]["bn"]["mean"],
                              tree(5)["batch_stats"]["bn"]["mean"])  # fmt: skip


def test_another_output_dtype_keeps_the_gain(tmp_path):
    for step, value in ((1, 1.0), (2, 1.0078125)):
        write_checkpoint(tmp_path / str(step), {"w": np.array([value], ml_dtypes.bfloat16)})
    assert average_checkpoints(tmp_path, k=2, dtype="float32")["w"][0] == np.float32(1.00390625)
    assert average_checkpoints(tmp_path, k=2)["w"].dtype == ml_dtypes.bfloat16


@given(seed=st.integers(0, 99), k=st.integers(1, 5), method=st.sampled_from(["uniform", "ema"]))
def test_the_average_of_identical_checkpoints_is_the_checkpoint(tmp_path_factory, seed, k, method):
    folder = tmp_path_factory.mktemp("same")
    for step in range(1, k + 1):
        write_checkpoint(folder / str(step), tree(seed), checksums=False)
    assert_same_bits(average_checkpoints(folder, k=k, method=method, include=["*"]), tree(seed))


def test_a_sweep_reads_every_byte_once_and_equals_single_averages(run, tmp_path, monkeypatch):
    recipes = sweep_recipes(run, ks=[2, 3, 5], ends=[5, 7, 8], methods=["uniform", "ema:0.8"])
    read = Counter()
    original = Checkpoint.read

    def counting(self, name, index, out):
        read[self.step, name] += out.nbytes
        original(self, name, index, out)

    monkeypatch.setattr(Checkpoint, "read", counting)
    results = prepare(recipes).in_memory()
    steps = {int(s.rpartition("@")[2]) for recipe in recipes for s in recipe.sources}
    expected = {
        (step, name): spec.nbytes
        for step in steps
        for name, spec in open_checkpoint(run, step=step).leaves.items()
    }
    assert read == expected
    assert results[0].bytes_read == sum(expected.values())
    for recipe, result in zip(recipes, results, strict=True):
        steps = [int(s.rpartition("@")[2]) for s in recipe.sources]
        single = average_checkpoints(run, steps=steps, method=recipe.method)
        assert_same_bits(result.tree, single)


def test_written_averages_are_the_averages_in_memory_and_carry_a_record(run, tmp_path):
    recipe = window_recipe(run, k=3, end=6)
    result = prepare([recipe]).written([tmp_path / "out"])[0]
    stored = open_checkpoint(tmp_path / "out")
    assert_same_bits(stored.read_tree(), prepare([recipe]).in_memory()[0].tree)
    assert stored.checksums == result.digests
    record = json.loads((tmp_path / "out" / "record" / "metadata").read_text())
    assert [s["step"] for s in record["sources"]] == [4, 5, 6]
    assert [s["weight"] for s in record["sources"]] == [1.0] * 3
    for source in record["sources"]:
        saved = open_checkpoint(run, step=source["step"]).checksums
        assert source["digests"] == {n: saved[n] for n in source["digests"]}


def test_outputs_are_never_overwritten_unasked(run, tmp_path):
    recipe = window_recipe(run, k=2)
    prepare([recipe]).written([tmp_path / "out"])
    before = sorted(p for p in (tmp_path / "out").rglob("*"))
    with pytest.raises(OutputExistsError, match="out"):
        prepare([window_recipe(run, k=3)]).written([tmp_path / "out"])
    assert sorted(p for p in (tmp_path / "out").rglob("*")) == before
    prepare([window_recipe(run, k=3)]).written([tmp_path / "out"], overwrite=True)
    assert_same_bits(
        open_checkpoint(tmp_path / "out").read_tree(),
        average_checkpoints(run, k=3),
    )


def test_sources_of_several_runs(run, tmp_path):
    write_checkpoint(tmp_path / "other" / "1", tree(50))
    recipe = weighted_recipe([f"{run}@2:0.25", f"{tmp_path / 'other'}@1:0.75"])
    found = prepare([recipe]).in_memory()[0].tree["params"]["a"]["bias"]
    one, other = (tree(s)["params"]["a"]["bias"].astype(np.float64) for s in (2, 50))
    assert np.array_equal(found, (0.25 * one + 0.75 * other).astype(np.float32))


def test_estimates_are_exact_about_bytes(run):
    recipe = window_recipe(run, k=3)
    expected = prepare([recipe]).estimate
    assert expected.checkpoints == [f"{run}@{s}" for s in (6, 7, 8)]
    assert expected.bytes_to_read == prepare([recipe]).in_memory()[0].bytes_read
    assert expected.bytes_to_write == open_checkpoint(run).nbytes
    assert expected.statistics == ["batch_stats/bn/mean", "batch_stats/bn/var"]


def change(run, step, name, edit):
    chunk = next((run / str(step) / "model" / name).glob("[0-9]*"))
    data = bytearray(chunk.read_bytes())
    edit(data)
    chunk.write_bytes(bytes(data))


@pytest.fixture
def small(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / str(step), {"w": np.arange(6, dtype=np.float32) + step})
    return tmp_path


def test_a_flipped_bit_is_found_while_averaging(small):
    change(small, 2, "w", lambda data: data.__setitem__(4, data[4] ^ 1))
    with pytest.raises(CorruptCheckpointError, match=r"@2, leaf 'w': bytes changed since saving"):
        average_checkpoints(small, k=3)
    average_checkpoints(small, k=1)


def test_a_truncated_file_is_named(small):
    change(small, 2, "w", lambda data: data.__delitem__(slice(8, None)))
    with pytest.raises(CorruptCheckpointError, match=r"@2.*w"):
        average_checkpoints(small, k=3)


def test_a_missing_file_is_named(small):
    next((small / "2" / "model" / "w").glob("[0-9]*")).unlink()
    with pytest.raises(CorruptCheckpointError, match=r"@2.*w"):
        average_checkpoints(small, k=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_name_checkpoint_leaf_and_place(small, bad):
    write_checkpoint(small / "4", {"w": np.float32([0, 1, bad, 3, 4, 5])})
    with pytest.raises(NonFiniteError, match=r"@4, leaf 'w': (nan|-?inf) at \[2\]"):
        average_checkpoints(small, k=3)


def test_other_models_are_refused(small):
    write_checkpoint(small / "4", {"w": np.zeros(7, np.float32)})
    with pytest.raises(TreeMismatchError, match=r"leaf 'w': expected float32\[6\].*@4"):
        average_checkpoints(small, k=2)
    write_checkpoint(small / "5", {"v": np.zeros(7, np.float32)})
    with pytest.raises(TreeMismatchError, match=r"leaf '[vw]' is in"):
        average_checkpoints(small, k=2)


def test_nothing_is_left_where_averaging_failed(small, tmp_path):
    change(small, 2, "w", lambda data: data.__setitem__(4, data[4] ^ 1))
    with pytest.raises(CorruptCheckpointError):
        prepare([window_recipe(small, k=3)]).written([tmp_path / "outs" / "out"])
    assert list((tmp_path / "outs").iterdir()) == []


def test_impossible_options_are_explained(run):
    with pytest.raises(SelectionError, match="threads: expected >= 1"):
        prepare([window_recipe(run, k=2)], AveragingOptions(threads=0)).in_memory()
    with pytest.raises(SelectionError, match="dtype: expected float32"):
        prepare([window_recipe(run, k=2)], AveragingOptions(dtype="float33")).in_memory()
    with pytest.raises(SelectionError, match="dtype: expected"):
        prepare([window_recipe(run, k=2)], AveragingOptions(dtype=",f4")).in_memory()


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.complex64, np.int32]


@given(
    leaves=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 9), max_size=3)),
        min_size=1, max_size=4,
    ),
    k=st.integers(1, 5),
    method=st.sampled_from(["uniform", "linear", "ema:0.3", "power_ema:0.2", "decay:cosine"]),
    limit=st.sampled_from([16, 200, 1 << 20]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=25)
def test_both_readers_and_the_jitted_average_give_the_same_bits(
    tmp_path_factory, leaves, k, method, limit, seed
):
    folder = tmp_path_factory.mktemp("any")
    generator = np.random.default_rng(seed)
    trees = [
        {
            # Halves around 1: normal numbers in every dtype.
            f"leaf{i}": (generator.uniform(0.5, 2, shape) * 8).astype(dtype)
            for i, (dtype, shape) in enumerate(leaves)
        }
        for _ in range(k)
    ]
    for step, each in enumerate(trees, start=1):
        write_checkpoint(folder / str(step), each, checksums=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lawa_jax.offline.plan.BLOCK_BYTES", limit)
        in_place = average_checkpoints(folder, k=k, method=method)
        patch.setattr(Checkpoint, "_reads_in_place", lambda self, name: False)
        through_tensorstore = average_checkpoints(folder, k=k, method=method)
    assert_same_bits(in_place, through_tensorstore)
    weights = window_recipe(folder, k=k, method=method).weights
    with jax.enable_x64(True):
        assert_same_bits(in_place, lawa_jax.average(trees, weights))
