"""Outputs destroy nothing: no source, no stranger's file, no step of a run."""

import hashlib
import os

import ml_dtypes
import numpy as np
import pytest

from lawa_jax.errors import NonFiniteError, OutputExistsError
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, Recipe, window_recipe
from lawa_jax.offline.verify import verify
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import Run, open_checkpoint


@pytest.fixture(params=["epochs", "."])
def run(tmp_path, request):
    for step in range(1, 5):
        write_checkpoint(
            tmp_path / "run" / request.param / str(step), {"w": np.full(4, step, np.float32)}
        )
    write_checkpoint(tmp_path / "run" / "resume" / "40", {"w": np.zeros(4)})
    return tmp_path / "run"


def contents(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def refused(run, out, match, **options):
    before = contents(run.parent)
    with pytest.raises(OutputExistsError, match=match):
        prepare([window_recipe(run, k=3)]).written([out], **options)
    assert contents(run.parent) == before


@pytest.mark.parametrize(
    "out",
    ["run", "run/", "run/4", "run/4/model", "run/4/model/x", ".", "run/../run", "link", "link/4"],
)
def test_a_source_its_parents_and_its_children_are_never_replaced(run, out):
    place = "epochs/" if (run / "epochs").exists() else ""
    (run.parent / "link").symlink_to(run)
    out = run.parent / out.replace("/4", f"/{place}4")
    refused(run, out, "choose", overwrite=True)


@pytest.mark.parametrize("make", ["letters", "run2/epochs/3", "run/resume/40", "file", "damaged"])
def test_nothing_is_replaced_but_an_average_of_ours(run, make):
    out = run.parent / make
    if make == "letters":
        out.mkdir()
        (out / "a.txt").write_text("dear")
    elif make == "file":
        out.write_text("dear")
    elif make == "run2/epochs/3":
        write_checkpoint(out, {"w": np.zeros(4, np.float32)})
    elif make == "damaged":
        (out / "record").mkdir(parents=True)
        (out / "record" / "metadata").write_text('{"format": 1')
    refused(run, out, "no average that lawa wrote|exists", overwrite=True)
    refused(run, out, "already exists")


def test_a_link_is_not_followed(run):
    prepare([window_recipe(run, k=2)]).written([run.parent / "average"])
    (run.parent / "link").symlink_to(run.parent / "average")
    refused(run, run.parent / "link", "is a link", overwrite=True)
    (run.parent / "nowhere").symlink_to(run.parent / "missing")
    refused(run, run.parent / "nowhere", "already exists")


def test_an_earlier_average_is_replaced_once_the_new_one_is_complete(run):
    out = run.parent / "average"
    prepare([window_recipe(run, k=2)]).written([out])
    refused(run, out, "never replaced silently")
    prepare([window_recipe(run, k=4)]).written([out], overwrite=True)
    assert open_checkpoint(out).read_leaf("w")[0] == 2.5


def test_an_average_that_is_a_source_is_not_replaced(run):
    out = run.parent / "average"
    prepare([window_recipe(run, k=2)]).written([out])
    again = Recipe((str(out),), (1.0,), "uniform", "again")
    with pytest.raises(OutputExistsError, match="from which it would be made"):
        prepare([again]).written([out], overwrite=True)
    assert open_checkpoint(out).read_leaf("w")[0] == 3.5


@pytest.mark.parametrize("name", ["5", "lawa_4", "best_5", "0006"])
def test_no_average_becomes_a_step_of_its_source(run, name):
    place = run / "epochs" if (run / "epochs").exists() else run
    refused(run, place / name, r"has the name of step \d .*--as-step")
    # Wanted, it is marked as an average and leaves the run as it was.
    prepare([window_recipe(run, k=2)]).written([place / name], as_step=True)
    assert Run(run).steps == [1, 2, 3, 4]
    assert [path.name for path in Run(run).averages] == [name]
    assert window_recipe(run, k=2).sources == (f"{run}@3", f"{run}@4")
    assert open_checkpoint(place / name).read_leaf("w")[0] == 3.5


def test_two_directories_for_one_step_are_named_where_they_matter(run):
    place = run / "epochs" if (run / "epochs").exists() else run
    os.rename(place / "2", place / "copy_2")
    write_checkpoint(place / "02", {"w": np.full(4, 2, np.float32)})
    assert window_recipe(run, k=2).sources == (f"{run}@3", f"{run}@4")
    with pytest.raises(Exception, match=r"step 2 is there more than once \(02, copy_2\)"):
        window_recipe(run, k=3)
    with pytest.raises(Exception, match=r"more than once"):
        open_checkpoint(run, step=2)


def test_a_step_named_unlike_the_others_is_in_doubt(run):
    place = run / "epochs" if (run / "epochs").exists() else run
    write_checkpoint(place / "best_5", {"w": np.zeros(4, np.float32)})
    assert window_recipe(run, k=3, end=4).sources[-1] == f"{run}@4"
    with pytest.raises(Exception, match="step 5 is in best_5, while others are named like 1"):
        window_recipe(run, k=3)
    assert open_checkpoint(place / "best_5").read_leaf("w")[0] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_an_average_that_its_dtype_cannot_hold_is_an_error(tmp_path, dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    for step, values in ((1, [1.0, 2.0]), (2, [1.0, 8 * largest])):
        write_checkpoint(tmp_path / "run" / str(step), {"big": np.float64(values)})
    recipe = window_recipe(tmp_path / "run", k=2)
    with pytest.raises(NonFiniteError, match=f"'big'.*beyond what {dtype} can hold"):
        prepare([recipe], AveragingOptions(dtype=dtype)).written([tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_negative_weights_may_overflow_without_a_change_of_dtype(tmp_path):
    for step, value in ((1, -6e4), (2, 6e4)):
        write_checkpoint(tmp_path / str(step), {"w": np.float16([value])})
    recipe = Recipe((f"{tmp_path}@1", f"{tmp_path}@2"), (-1.0, 2.0), "custom", "x")
    with pytest.raises(NonFiniteError, match="beyond what float16 can hold"):
        prepare([recipe]).in_memory()
    prepare([recipe], AveragingOptions(dtype="float32")).written([tmp_path / "out"])
    assert verify(str(tmp_path / "out")).leaves == 1
