"""`--evaluate` of `lawa sweep` gives the figures of the training scripts, bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from lawa_jax.data.text import prepare_text
from lawa_jax.errors import CheckpointNotFoundError, ConfigError
from lawa_jax.offline.recipe import AveragingOptions, sweep_recipes
from lawa_jax.output import write_checkpoint
from lawa_jax.search import scoring
from lawa_jax.training import run_directory
from lawa_jax.training.config import ImageConfig, to_json
from lawa_jax.training.image_task import image_task, load_images
from lawa_jax.training.lawa import evaluate_latest
from lawa_jax.training.mesh import Placement
from lawa_jax.training.run_evaluator import run_config, run_evaluator
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import load_text, text_task

IMAGES = ImageConfig(
    dataset="dummy", arch="resnet_digits", dummy_examples=64, dummy_classes=4, image_size=8,
    batch_size=16, bn_batches=2, loader_threads=0,
)  # fmt: skip
TEXT = TextConfig(
    batch_size=8, layers=1, width=16, ffn_width=32, heads=2, max_tokens=32, lengths=1,
    loader_threads=1,
)  # fmt: skip


def moved(tree, seed):
    generator = np.random.default_rng(seed)
    if isinstance(tree, dict):
        return {name: moved(child, seed) for name, child in tree.items()}
    return np.asarray(tree) + np.float32(0.01) * generator.random(tree.shape, np.float32)


def make_run(path, config, task):
    run_directory.create(path, to_json(config))
    start = task.init()["model"]
    for epoch in range(1, 4):
        write_checkpoint(path / "epochs" / str(epoch), moved(start, epoch))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    task = image_task(IMAGES, load_images(IMAGES), Placement())
    return make_run(epath.Path(tmp_path_factory.mktemp("images")) / "run", IMAGES, task), task


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    words = ["alpha beta gamma delta", "gamma alpha", "delta beta beta alpha"]
    prepare_text({"train": words * 8, "valid": words * 4, "test": words * 3}, folder / "data",
                 vocab_size=280)  # fmt: skip
    config = dataclasses.replace(TEXT, data_dir=str(folder / "data"))
    data = load_text(config, ("val", "test"))
    config = dataclasses.replace(config, vocab_size=len(data.dictionary))
    task = text_task(config, data, Placement())
    return make_run(epath.Path(folder) / "run", config, task), task


def evaluated(run, ks, policy=None, **options):
    evaluator, bn = run_evaluator(run, bn=policy, **options)
    averaging = AveragingOptions(bn="latest" if bn == "latest" else "average")
    jobs = sweep_recipes(run, ks=ks, ends=[3])
    return {
        len(job.sources): evaluator.score(tree, scoring.steps_of(job))
        for job, tree in scoring.in_memory(jobs, averaging)
    }


def expected(task, run, k, policy, splits=("val",)):
    row = evaluate_latest(task, run, k=k, end=3, bn=policy, splits=splits)
    return {name: value for name, value in row.items() if "/" in name}


@pytest.mark.parametrize("policy", ["recalibrate", "average", "latest"])
def test_images_as_the_script_evaluates_them(images, policy):
    run, task = images
    found = evaluated(run, [1, 2], policy)
    assert found[2] == expected(task, run, 2, policy)
    # A raw checkpoint keeps its own statistics.
    assert found[1] == expected(task, run, 1, "latest")


def test_the_policy_is_the_runs_own(images):
    run, task = images
    assert run_evaluator(run)[1] == "recalibrate"
    few = evaluated(run, [2], changes={"bn_batches": "1"})[2]
    assert few != expected(task, run, 2, "recalibrate")


def test_text_as_the_script_evaluates_it(texts):
    run, task = texts
    found = evaluated(run, [1, 3], splits=("val", "test"))
    assert {"val/loss", "val/perplexity", "test/loss", "test/perplexity"} <= found[3].keys()
    for k in (1, 3):
        assert found[k] == expected(task, run, k, "average", ("val", "test"))


def test_what_figures_depend_on_is_in_the_identity(images):
    run, _ = images
    one = run_evaluator(run)[0]
    assert run_evaluator(run)[0].identity == one.identity
    assert run_evaluator(run, bn="average")[0].identity != one.identity
    assert run_evaluator(run, changes={"bn_batches": "1"})[0].identity != one.identity


def test_a_converted_run_is_known_by_its_architecture(tmp_path):
    config = {"model": {"arch": "resnet18", "num_classes": 7}, "source": {"path": "x.pt"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = run_config(epath.Path(tmp_path), {"data_dir": "images", "batch_size": "32"})
    assert isinstance(found, ImageConfig)
    assert (found.arch, found.data_dir, found.batch_size) == ("resnet18", "images", 32)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({"hello": 1}, {}, "of no ResNet or RoBERTa of this package"),
        ({"arch": "resnet18"}, {"colour": "red"}, "unknown field 'colour'"),
        ({"arch": "resnet18"}, {"batch_size": "many"}, "--set batch_size=many: expected int"),
        ({"arch": "resnet18"}, {"batch_size": "1.5"}, "'batch_size': expected int, found 1.5"),
        ({"arch": "resnet18"}, {"batch_size": "0"}, "batch_size: expected >= 1, found 0"),
    ],
)
def test_mistakes_are_explained(tmp_path, config, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        run_config(epath.Path(tmp_path), changes)


def test_no_run(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="holds no run"):
        run_evaluator(tmp_path / "nothing")
