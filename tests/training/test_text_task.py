"""The task's batches, and its step on sharded parameters, against plain ones."""

import dataclasses

import jax
import numpy as np
import pytest

from lawa_jax.data.text import dummy_text
from lawa_jax.errors import ConfigError
from lawa_jax.training.mesh import Placement
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import evaluated_rows, padding_waste, text_task
from lawa_jax.tree import named_leaves

SMALL = TextConfig(
    seed=3, batch_size=8, warmup_updates=0, loader_threads=0,
    layers=2, width=64, ffn_width=128, heads=2, max_tokens=16, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def task_of(place, **options):
    data = dummy_text(32, max_tokens=16, vocab_size=64)
    return text_task(dataclasses.replace(SMALL, **options), data, place)


def run(task, steps=3):
    """Parameters and losses after some updates."""
    state, losses = task.place.state(task.init()), []
    for step, batch in enumerate(task.train_batches(1, 0)):
        if step == steps:
            break
        state, metrics = task.train_step(
            state, task.place.batch(batch), task.learning_rate(step), jax.random.key(step)
        )
        losses.append(float(metrics["loss"][0]) / float(metrics["loss"][1]))
    return state, losses


def test_batches_from_the_middle_are_the_tail_of_all():
    task = task_of(Placement(jax.devices()[:1]))
    everything = list(task.train_batches(2, 0))
    assert len(everything) * task.batch_size == task.samples_per_epoch == 32
    tail = list(task.train_batches(2, 16))
    assert len(tail) == 2
    for ours, theirs in zip(tail, everything[2:], strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    other = next(task.train_batches(3, 0))
    assert not np.array_equal(other["tokens"], everything[0]["tokens"])
    assert task.units_per_sample == 16


def test_full_blocks_waste_nothing():
    assert padding_waste(dummy_text(32, max_tokens=16), batch_size=8, lengths=2) == 0
    assert padding_waste(dummy_text(30, max_tokens=16), batch_size=8, lengths=2) == pytest.approx(
        2 / 32
    )


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_sharded_training_equals_that_on_one_device(fsdp):
    alone, expected = run(task_of(Placement(jax.devices()[:1])))
    place = Placement(jax.devices()[:4], fsdp=fsdp)
    state, losses = run(task_of(place))
    assert losses == pytest.approx(expected, rel=1e-5)
    theirs = named_leaves(alone["model"])
    for name, leaf in named_leaves(state["model"]).items():
        np.testing.assert_allclose(leaf, theirs[name], rtol=1e-3, atol=2e-5, err_msg=name)
        # Each update leaves parameters where they were.
        assert leaf.sharding.is_equivalent_to(place.sharding(leaf.shape), leaf.ndim)
    embedding = state["model"]["params"]["embed_tokens"]["embedding"]
    held = {shard.data.size for shard in embedding.addressable_shards}
    assert held == {embedding.size // fsdp}


def test_accumulation_is_the_same_update():
    one = Placement(jax.devices()[:1])
    _, expected = run(task_of(one))
    _, losses = run(task_of(one, accumulate=4))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="4 devices do not divide into groups of 3"):
        Placement(jax.devices()[:4], fsdp=3)
    with pytest.raises(ConfigError, match="does not divide over 4 devices"):
        task_of(Placement(jax.devices()[:4]), batch_size=6)


def test_the_schedule_is_fairseqs():
    task = task_of(Placement(jax.devices()[:1]), warmup_updates=10, total_updates=110)
    assert task.learning_rate(0) == 0
    assert task.learning_rate(5) == pytest.approx(2.5e-4)
    assert task.learning_rate(60) == pytest.approx(2.5e-4)
    constant = task_of(Placement(jax.devices()[:1]), schedule="constant", warmup_updates=10)
    assert constant.learning_rate(10_000) == 5e-4


def test_blocks_evaluated_at_once_fit_into_memory():
    assert evaluated_rows(0, 16, 1) == 16  # a part of a training batch
    assert evaluated_rows(0, 2048, 1) == 32  # what a converted run knows: the paper's batch
    assert evaluated_rows(0, 2048, 16) == 512
    assert evaluated_rows(100, 2048, 1) == 100
