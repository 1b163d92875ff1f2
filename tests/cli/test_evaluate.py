"""`--evaluate` of sweeps and soups: the shipped trainers' figures, from the run's own JSON."""

import pytest
from etils import epath

from lawa_jax.output import write_checkpoint
from lawa_jax.training import run_directory
from lawa_jax.training.config import ImageConfig, to_json
from lawa_jax.training.image_task import image_task, load_images
from lawa_jax.training.lawa import evaluate_latest
from lawa_jax.training.mesh import Placement

CONFIG = ImageConfig(
    dataset="dummy", arch="resnet_digits", dummy_examples=64, dummy_classes=4, image_size=8,
    batch_size=16, bn_batches=1, loader_threads=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return image_task(CONFIG, load_images(CONFIG), Placement())


@pytest.fixture(scope="module")
def shipped(task, tmp_path_factory):
    run = epath.Path(tmp_path_factory.mktemp("shipped") / "run")
    run_directory.create(run, to_json(CONFIG))
    model = task.init()["model"]
    for epoch in range(1, 5):
        model["params"]["fc"]["bias"] += epoch / 10
        write_checkpoint(run / "epochs" / str(epoch), model)
    return run


def test_a_sweep(lawa, shipped, task, tmp_path):
    done = lawa("sweep", shipped, "-k", "2", "--end", "3:4", "--evaluate", "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["bn"] == "recalibrate"
    for row in done.json["rows"]:
        figures = evaluate_latest(task, shipped, k=2, end=row["end"], bn="recalibrate")
        assert row["metrics"] == {n: v for n, v in figures.items() if n.startswith("val/")}
    options = ["-k", "2", "--end", "4", "--evaluate", "--bn", "average", "-o", tmp_path]
    other = lawa("sweep", shipped, *options)
    assert (other.code, "another bn: 'recalibrate', now 'average'" in other.err) == (2, True)
    options[-3:-2] = ["recalibrate", "--set", "bn_batches=2"]
    other = lawa("sweep", shipped, *options)
    assert (other.code, "with other code or settings" in other.err) == (2, True)


def test_a_soup_selects_on_one_split_and_reports_on_another(lawa, shipped, tmp_path):
    options = ["--evaluate", "--splits", "train,val", "--metric", "train/loss", "--steps", "1,2,4"]
    done = lawa("soup", shipped, *options, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert sorted(done.json["report"]) == ["val/loss", "val/top1"]
    assert done.json["metric"] == "train/loss"
    assert "flatter" not in done.err
    people = lawa("soup", shipped, *options, "-o", tmp_path / "other")
    assert "the figures here are with recomputed statistics" in people.err


def test_a_soup_of_one_split_is_said_to_flatter(lawa, shipped, tmp_path):
    options = ["--evaluate", "--search", "best-window", "-k", "1,2", "-o", tmp_path / "out"]
    done = lawa("soup", shipped, *options, "--json")
    assert done.code == 0, done.err
    assert list(done.json["report"]) == ["val/top1"]
    assert "flatter, for they are of the split that the search sees" in done.err


@pytest.mark.parametrize(
    "command", [["soup"], ["sweep", "--end", "4", "-k", "2"]], ids=lambda command: command[0]
)
def test_splits_of_text_are_refused_for_images(lawa, shipped, tmp_path, command):
    options = ["--evaluate", "--splits", "val,test", "-o", tmp_path / "out"]
    refused = lawa(*command, shipped, *options)
    assert refused.code == 2
    assert "there is no split 'test' of images; expected some of train, val" in refused.err
    assert "val/loss" not in refused.err
    assert not (tmp_path / "out").exists()
