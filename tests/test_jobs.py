import numpy as np
import pytest

from lawa_jax.checkpoints import write_checkpoint
from lawa_jax.errors import SelectionError
from lawa_jax.jobs import best_job, sweep_jobs, weighted_job, window_job


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    top1 = [0.1, 0.5, 0.9, 0.7, 0.9]
    for step, value in enumerate(top1, start=1):
        write_checkpoint(
            run / str(step), {"w": np.zeros(1, np.float32)}, metrics={"val/top1": value}
        )
    return run


def steps(job):
    return [int(source.rpartition("@")[2]) for source in job.sources]


def test_a_window_is_the_k_latest(run):
    job = window_job(run, k=3, end=4)
    assert steps(job) == [2, 3, 4]
    assert job.weights == (1.0, 1.0, 1.0)
    assert job.name == "k3-end4-uniform"


def test_methods_give_their_coefficients(run):
    assert window_job(run, k=3, method="ema:0.5").weights == (0.25, 0.25, 0.5)


def test_steps_and_shares(run):
    assert steps(window_job(run, steps="1:5:2")) == [1, 3, 5]
    assert steps(window_job(run, share="50%")) == [3, 4, 5]
    assert steps(window_job(run, share="1%")) == [4, 5]


def test_the_best_by_a_metric_of_equals_the_newer(run):
    assert steps(best_job(run, best=1, metric="val/top1", mode="max")) == [5]
    assert steps(best_job(run, best=3, metric="val/top1", mode="max")) == [3, 4, 5]
    assert steps(best_job(run, best=2, metric="val/top1", mode="min")) == [1, 2]


def test_an_unknown_metric_lists_the_known_ones(run):
    with pytest.raises(SelectionError, match=r"0 checkpoints have.*'loss'.*val/top1"):
        best_job(run, best=1, metric="loss")
    with pytest.raises(SelectionError, match="expected at least 9"):
        best_job(run, best=9, metric="val/top1")


def test_any_weighted_set():
    job = weighted_job(["A@10:0.25", "B@20:0.75"])
    assert job.sources == ("A@10", "B@20")
    assert job.weights == (0.25, 0.75)
    assert weighted_job(["A@1", "B@2"]).weights == (0.5, 0.5)
    assert weighted_job(["gs://bucket/run@5"]).sources == ("gs://bucket/run@5",)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["A@1:0.5", "B@2"], "B@2 has no weight"),
        (["A@1:0.5", "B@2:0.6"], "weights sum to 1.1, expected 1"),
        (["A@1:x", "B@2:1"], "expected ADDRESS:WEIGHT with a number, found 'x'"),
        (["A@1", "A@1"], "A@1 is named twice"),
    ],
)
def test_weighted_sets_that_make_no_sense(sources, message):
    with pytest.raises(SelectionError, match=message):
        weighted_job(sources)


def test_a_sweep_is_every_combination(run):
    jobs = sweep_jobs(run, ks=[2, 3], ends=[5, 4], methods=["uniform", "linear"])
    assert [job.name for job in jobs] == [
        "k2-end4-uniform", "k2-end4-linear", "k3-end4-uniform", "k3-end4-linear",
        "k2-end5-uniform", "k2-end5-linear", "k3-end5-uniform", "k3-end5-linear",
    ]  # fmt: skip
    with pytest.raises(SelectionError, match="the sweep is empty"):
        sweep_jobs(run, ks=[], ends=[5])
    with pytest.raises(SelectionError, match="only 4 exist"):
        sweep_jobs(run, ks=[5], ends=[4])
