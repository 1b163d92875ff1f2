"""`lawa reconstruct`: an EMA nobody kept, from snapshots of two."""

import re

import numpy as np
import pytest

from lawa_jax.averaging import coefficients
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import open_checkpoint

STEPS, EVERY, SIZE = 480, 30, 64
THETA = np.cumsum(np.random.default_rng(3).normal(size=(STEPS, SIZE)), axis=0)


def ema(sigma, end):
    return coefficients.power_ema(range(1, end + 1), sigma) @ THETA[:end]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emas")
    for name, sigma in (("narrow", 0.05), ("wide", 0.10)):
        for step in range(EVERY, STEPS + 1, EVERY):
            write_checkpoint(folder / name / str(step), {"w": ema(sigma, step)})
    return [f"{folder / 'narrow'}:0.05", f"{folder / 'wide'}:0.10"]


@pytest.mark.parametrize(("sigma", "end"), [(0.07, 480), (0.15, 480), (0.15, 240)])
def test_an_ema_that_was_not_kept(lawa, kept, tmp_path, sigma, end):
    out = tmp_path / "out"
    done = lawa("reconstruct", *kept, "--sigma-rel", sigma, "--end", end, "-o", out)
    assert done.code == 0, done.err
    assert re.search(r"reconstruction error 0\.0\d+ of the EMA's profile\n", done.err)
    made, expected = open_checkpoint(out).read_tree()["w"], ema(sigma, end)
    error = np.linalg.norm(made - expected) / np.linalg.norm(THETA[end - 1] - expected)
    assert error < 0.05
    # Far closer than what was kept.
    assert np.linalg.norm(ema(0.10, end) - expected) > 4 * np.linalg.norm(made - expected)
    assert lawa("verify", out).code == 0


def test_what_was_kept_is_taken_as_it_is(lawa, kept, tmp_path):
    plan = lawa("reconstruct", *kept, "--sigma-rel", "0.1", "--dry-run", "--json").json
    wide = kept[1].removesuffix(":0.10")
    assert plan["sources"] == [{"checkpoint": f"{wide}@480", "coefficient": 1.0}]
    assert plan["method"] == "posthoc_ema:0.1"


def test_a_poor_reconstruction_says_so(lawa, kept):
    finished = lawa("reconstruct", kept[0], "--sigma-rel", "0.02", "--dry-run")
    assert "keep more snapshots, or widths around this one" in finished.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma-rel", "0.1"], "name directories of snapshots"),
        (["{run}", "--sigma-rel", "0.1"], "expected RUN:SIGMA_REL, such as"),
        (["{run}:0.1", "{run}:0.2", "--sigma-rel", "0.1"], "is named twice"),
        (["{run}:0.1", "--sigma-rel", "0.5"], "expected sigma_rel in (0, 0.2886], found 0.5"),
        (["{run}:0.1", "--sigma-rel", "0.1", "--end", "31"], "no snapshot 31 to end at"),
        (["{run}:0.1", "--sigma-rel", "0.1"], "say where to write the average"),
        (["nowhere:0.1", "--sigma-rel", "0.1"], "nowhere is not a directory"),
    ],
)
def test_mistakes_are_explained(lawa, kept, arguments, message):
    run = kept[0].removesuffix(":0.05")
    finished = lawa("reconstruct", *(a.format(run=run) for a in arguments))
    assert (finished.code, message in finished.err) == (2, True), finished.err
