import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from lawa_jax.data import imagenet, images
from lawa_jax.data.datasets import ImageData
from lawa_jax.data.loader import ArraySource
from lawa_jax.errors import ConfigError
from lawa_jax.script import Terminated
from lawa_jax.training import lawa, resume
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.image_task import image_task
from lawa_jax.training.loop import train
from lawa_jax.training.mesh import Placement
from lawa_jax.trajectory import list_steps, open_checkpoint

SMALL = ImageConfig(epochs=3, batch_size=8, arch="resnet_digits", bn_batches=0, loader_threads=1)


def pixels(count, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        "label": generator.integers(0, 10, count, dtype=np.int32),
    }


def made(validation=11, **options):
    data = ImageData(ArraySource(**pixels(16)), ArraySource(**pixels(validation, 1)), 10, None)
    place = options.pop("place", Placement())
    return image_task(dataclasses.replace(SMALL, **options), data, place)


def one_step(task, batch):
    state = task.place.state(task.init())
    return task.train_step(state, task.place.batch(batch), 0.1, jax.random.key(0))


def test_bytes_are_normalised_on_the_device():
    task, batch = made(place=Placement(jax.devices()[:1])), pixels(8)
    floats = {**batch, "image": np.asarray(images.normalize(batch["image"]))}
    states, metrics = zip(*(one_step(task, given) for given in (batch, floats)), strict=True)
    np.testing.assert_allclose(metrics[0]["loss"][0], metrics[1]["loss"][0], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_evaluation_is_exact_on_any_number_of_devices(devices):
    task = made(place=Placement(jax.devices()[:devices]))
    model = task.place.state(task.init()["model"])
    batches = list(task.eval_batches("val"))
    assert [int(batch["mask"].sum()) for batch in batches] == [8, 3]
    sums = jax.tree.map(
        lambda *x: sum(map(float, x)),
        *(jax.device_get(task.eval_step(model, task.place.batch(b))) for b in batches),
    )
    assert {count for _, count in sums.values()} == {11.0}
    whole = jax.device_get(
        task.eval_step(model, {k: jnp.asarray(v) for k, v in pixels(11, 1).items()})
    )
    for name in ("top1", "top5"):
        assert sums[name][0] == float(whole[name][0])
    means = lawa.evaluate(task, model)
    np.testing.assert_allclose(means["loss"], whole["loss"][0] / 11, rtol=1e-5)
    assert means["top1"] == sums["top1"][0] / 11


def test_groups_are_the_originals_batch_per_gpu():
    batch = pixels(8)
    place = Placement(jax.devices()[:1])
    grouped, _ = one_step(made(bn_groups=4, place=place), batch)
    first, _ = one_step(made(batch_size=2, place=place), {k: v[:2] for k, v in batch.items()})
    # The running statistics are those of the first GPU's part; of all 8 samples they are others.
    for name in ("mean", "var"):
        ours, theirs = (s["model"]["batch_stats"]["bn1"][name] for s in (grouped, first))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_average_says_what_its_statistics_come_from():
    assert made(bn_batches=1).recalibrated_on == {"bn_batches": 1, "bn_batch_size": 8}
    assert made(bn_batches=0).recalibrated_on == {"bn_batches": 2, "bn_batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, name, index in itertools.product(("train", "val"), ("ant", "bee"), range(9)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / split / name / f"{index}.JPEG")
    return root


def of_folder(folder, workers):
    data = imagenet.find(folder, image_size=8, dtype="uint8")
    config = dataclasses.replace(
        SMALL, batch_size=4, base_batch_size=4, loader_workers=workers, bn_batches=1
    )
    return image_task(config, data, Placement(jax.devices()[:1]))


def test_the_training_images_are_evaluated_without_augmentation(folder):
    task = of_folder(folder, 0)
    first = next(task.eval_batches("train"))
    name = folder / "train" / "ant" / "0.JPEG"
    expected = images.evaluation_pixels(name.read_bytes(), size=8, resize=9)
    np.testing.assert_array_equal(first["image"][0], expected)
    assert sum(int(batch["mask"].sum()) for batch in task.eval_batches("train")) == 18
    with pytest.raises(ConfigError, match="no split 'test' to evaluate; expected val or train"):
        task.eval_batches("test")


def digests(run):
    return {e: open_checkpoint(run, step=e, include=("*",)).checksums for e in list_steps(run)}


def test_stopping_and_resuming_with_other_numbers_of_workers_changes_no_bit(folder, tmp_path):
    def go_on(task, run, state, position):
        train(task, run, state, position, epochs=1, lawa_k=0)

    def afresh(task):
        return task.place.state(task.init()), resume.Position()

    runs = [epath.Path(tmp_path / name) for name in ("whole", "parts")]
    for run in runs:
        run.mkdir()
    go_on(task := of_folder(folder, 0), runs[0], *afresh(task))

    task = of_folder(folder, 2)
    updates = itertools.count(1)

    def stopping_step(*arguments):
        if next(updates) == 2:  # of four
            os.kill(os.getpid(), signal.SIGTERM)
        return task.train_step(*arguments)

    with pytest.raises(Terminated):
        go_on(task._replace(train_step=stopping_step), runs[1], *afresh(task))
    assert not list_steps(runs[1] / "epochs")
    task = of_folder(folder, 4)
    go_on(task, runs[1], *resume.restore_newest(runs[1], task, lawa_k=0, say=print))
    assert list_steps(runs[1]) == [1]
    assert digests(runs[0]) == digests(runs[1])
