import json
import shutil

import numpy as np
import pytest

from lawa_jax.errors import CorruptCheckpointError, SelectionError
from lawa_jax.offline.diff import diff
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, weighted_recipe, window_recipe
from lawa_jax.offline.verify import read_record, verify
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import Runs, open_checkpoint


def tree(seed):
    r = np.random.default_rng(seed)
    return {
        "params": {"w": r.standard_normal((6, 4), np.float32), "b": r.standard_normal(4)},
        "batch_stats": {"bn": {"mean": np.float32([seed]), "var": np.float32([1])}},
        "step": np.int32(seed),
    }


@pytest.fixture
def made(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / "run" / str(step), tree(step))
    out = tmp_path / "out"
    recipe = window_recipe(tmp_path / "run", k=2, method="ema:0.8")
    prepare([recipe], AveragingOptions(bn="latest")).written([out])
    return tmp_path


def chunk(step_dir, leaf):
    return next((step_dir / "model" / leaf).glob("[0-9]*"))


def flip(path, bit=3):
    data = bytearray(path.read_bytes())
    data[0] ^= 1 << bit
    path.write_bytes(bytes(data))


def edit(made, change):
    path = made / "out" / "record" / "metadata"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_an_average_verifies(made):
    found = verify(str(made / "out"))
    assert (found.leaves, found.missing, found.sha256) == (4, [], {})
    assert found.sources == [f"{made / 'run'}@2", f"{made / 'run'}@3"]


@pytest.mark.parametrize(
    "options",
    [
        AveragingOptions(bn="average"),
        AveragingOptions(dtype="float32"),
        AveragingOptions(include=("*",), exclude=("params/b",)),
        AveragingOptions(item="model"),
    ],
)
def test_every_option_is_repeated(made, options):
    sources = [f"{made / 'run'}@1:0.3", f"{made / 'run'}@3:0.7"]
    prepare([weighted_recipe(sources)], options).written([made / "other"])
    assert verify(str(made / "other")).leaves > 0


def test_the_record_says_how_to_make_it_again(made):
    record = read_record(open_checkpoint(made / "out"))
    assert record.format == 2
    assert record.method == "ema:0.8"
    assert [s.weight for s in record.sources] == pytest.approx([0.8, 0.2])
    assert [s.step for s in record.sources] == [2, 3]
    assert record.taken_from_newest == ["batch_stats/bn/mean", "batch_stats/bn/var"]
    assert record.versions.keys() >= {"python", "jax", "numpy", "orbax-checkpoint"}
    assert record.created.endswith("+00:00")
    for source in record.sources:
        stored = open_checkpoint(made / "run", step=source.step)
        assert source.path == str(stored.path)
        assert source.digests == {n: stored.checksums[n] for n in source.digests}
    assert open_checkpoint(made / "out").leaves["params/b"].dtype == np.float64


def test_records_of_format_1_are_read(made):
    """It also had what follows from the rest."""

    def older(record):
        record.update(format=1, weights=[s["weight"] for s in record["sources"]], dtypes={"x": "y"})
        for source in record["sources"]:
            source["coefficient"] = 0.5

    edit(made, older)
    assert verify(str(made / "out")).sources == [f"{made / 'run'}@2", f"{made / 'run'}@3"]


def test_sources_given_relatively_are_found_from_anywhere(made, monkeypatch):
    monkeypatch.chdir(made)
    prepare([window_recipe("run", k=2)]).written(["relative"])
    shutil.move("relative", made / "run" / "moved")
    monkeypatch.chdir("/")
    assert verify(str(made / "run" / "moved")).sources == ["run@2", "run@3"]


def test_a_flipped_bit_in_the_output(made):
    flip(chunk(made / "out", "params.w"))
    with pytest.raises(CorruptCheckpointError, match=r"out, leaf 'params/w': bytes changed since"):
        verify(str(made / "out"))


def test_a_flipped_bit_in_a_source(made):
    flip(chunk(made / "run" / "2", "params.w"))
    with pytest.raises(CorruptCheckpointError, match=r"leaf 'params/w'"):
        verify(str(made / "out"))


def test_a_source_replaced_by_another_valid_one(made):
    write_checkpoint(made / "run" / "3", tree(30), overwrite=True)
    with pytest.raises(CorruptCheckpointError, match=r"leaf '.*': (differs from|changed since)"):
        verify(str(made / "out"))


def test_a_source_replaced_where_rounding_hides_it(tmp_path):
    # 1e-30 is lost in the sum: only the digest of the source can tell.
    for step, value in ((1, 1e-30), (2, 1.0)):
        write_checkpoint(tmp_path / "run" / str(step), {"w": np.float32([value])})
    prepare([window_recipe(tmp_path / "run", k=2)]).written([tmp_path / "out"])
    write_checkpoint(tmp_path / "run" / "1", {"w": np.float32([2e-30])}, overwrite=True)
    with pytest.raises(CorruptCheckpointError, match=r"run@1, leaf 'w': changed since it was av"):
        verify(str(tmp_path / "out"))


def test_sources_that_are_gone_or_moved_along(made):
    moved = made / "elsewhere"
    moved.mkdir()
    shutil.move(made / "run", moved / "run")
    assert verify(str(made / "out")).missing == [f"{made / 'run'}@2", f"{made / 'run'}@3"]
    shutil.move(made / "out", moved / "out")
    assert verify(str(moved / "out")).missing == []


def halve_the_first_weight(record):
    record["sources"][0]["weight"] /= 2


def swap_the_sources(record):
    one, other = record["sources"]
    for key in ("address", "path", "relative", "step", "digests"):
        one[key], other[key] = other[key], one[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["sources"][0].update(weight="0.5"), "damaged.* at `.*sources.*weight`"),
        (lambda r: r["sources"][0].update(weight=1e308), "leaf '.*': .*|differs from"),
        (lambda r: [s.update(weight=1.7e308) for s in r["sources"]], "its weights make no average"),
        (lambda r: r["sources"][0].update(path=[]), "damaged.* at `.*sources.*path`"),
        (halve_the_first_weight, "differs from the average of its sources"),
        (swap_the_sources, "differs from the average of its sources"),
        (
            lambda r: r["sources"][0]["digests"].update({"params/w": "0" * 16}),
            "leaf 'params/w': changed since it was averaged",
        ),
        (lambda r: r["options"].update(bn="average"), "differs from the average of its sources"),
        (lambda r: r["options"].update(dtype="float32"), "expected a leaf 'params/b' of float32"),
        (lambda r: r.pop("sources"), "its record is damaged.* missing required field `sources`"),
        (lambda r: r["options"].update(bn=7), "its record is damaged.* at `.*options.bn`"),
        (lambda r: r["options"].update(bn="none"), "its record is damaged.* at `.*options.bn`"),
        (lambda r: r.update(sources=[]), "its weights make no average"),
        (lambda r: r["sources"].append("x"), "its record is damaged.* at `.*sources"),
    ],
)
def test_an_edited_record(made, change, message):
    edit(made, change)
    with pytest.raises(CorruptCheckpointError, match=message):
        verify(str(made / "out"))


def test_records_of_nobody_and_of_the_future(made):
    with pytest.raises(SelectionError, match="only averages written by lawa can be verified"):
        verify(f"{made / 'run'}@1")
    edit(made, lambda record: record.update(format=3))
    with pytest.raises(SelectionError, match="its record has format 3, expected 2"):
        verify(str(made / "out"))
    (made / "out" / "record" / "metadata").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="record"):
        verify(str(made / "out"))


def test_a_leaf_lost_from_the_output(made):
    shutil.rmtree(made / "out" / "model" / "params.b")
    with pytest.raises(CorruptCheckpointError, match=r"params\.b"):
        verify(str(made / "out"))


def test_strong_digests_are_of_the_bytes(made):
    import hashlib

    found = verify(str(made / "out"), strong=True).sha256
    stored = open_checkpoint(made / "out")
    assert found.keys() == stored.leaves.keys()
    assert len(set(found.values())) == len(found)
    assert all(len(text) == hashlib.sha256().digest_size * 2 for text in found.values())
    flip(chunk(made / "run" / "1", "params.w"))  # no source of it
    assert verify(str(made / "out"), strong=True).sha256 == found


def test_differences_by_hand(tmp_path):
    nan = np.float32("nan")
    write_checkpoint(tmp_path / "1", {"w": np.float32([3, 4, 0]), "n": np.float32([nan])})
    write_checkpoint(tmp_path / "2", {"w": np.float32([3, 4, -0.0]), "n": np.float32([nan])})
    # Bits are compared: equal NaNs are equal, zeros of different sign are not.
    (found,) = diff(Runs().open(f"{tmp_path}@1"), Runs().open(f"{tmp_path}@2"))
    assert found == ("w", 0.0, 0.0, 1, 3, None)
