import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lawa_jax.models.functional import functional
from lawa_jax.models.resnet import ResNet
from lawa_jax.training.classification import classification_loss, moments_fn
from lawa_jax.training.optim import sgd
from lawa_jax.training.steps import init_state, make_eval_step, make_train_step

KEY = jax.random.key(0)


class Network(NamedTuple):
    init: Callable  # a fresh copy of the same model each time, since steps donate
    apply: Callable


@functools.cache
def network(**options):
    net = functional(
        lambda rngs: ResNet(
            (1,), (4,), stem="cifar", in_channels=1, num_classes=10, **options, rngs=rngs
        )
    )
    model = net.init(0)
    return Network(lambda: jax.tree.map(jnp.copy, model), net.apply)


def batch(size=16, seed=0):
    image = jax.random.normal(jax.random.key(seed), (size, 8, 8, 1))
    return {"image": image, "label": jnp.arange(size, dtype=jnp.int32) % 10}


def linear_loss(model, batch, key, train):
    """Mean of w * x over the samples that the mask keeps: its gradient is their mean."""
    values = jnp.where(batch["mask"], model["params"]["w"] * batch["x"], 0.0)
    count = batch["mask"].sum(dtype=jnp.int32)
    loss = values.sum() / count.astype(jnp.float32)
    noise = jax.random.uniform(key) if train else jnp.float32(0)
    return loss, ({}, {"loss": (values.sum(), count), "noise": (noise, jnp.int32(1))})


def assert_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_step_by_hand():
    """w <- w - lr * mean(x) without momentum."""
    optimizer = sgd(momentum=0.0)
    step = make_train_step(linear_loss, optimizer)
    data = {"x": jnp.asarray([1.0, 2.0, 3.0, 4.0]), "mask": jnp.ones(4, bool)}
    state, metrics = step(
        init_state({"params": {"w": jnp.asarray(1.0)}}, optimizer), data, 0.1, KEY
    )
    np.testing.assert_allclose(state["model"]["params"]["w"], 0.75)
    assert metrics["loss"] == (10.0, 4)
    assert state["model"].keys() == {"params"}


def test_parts_weigh_by_what_they_count():
    """Parts are samples {0, 2} and {1, 3}; the first keeps one, the second two: mean of three."""
    optimizer = sgd(momentum=0.0)
    step = make_train_step(linear_loss, optimizer, accumulate=2)
    data = {
        "x": jnp.asarray([1.0, 2.0, 30.0, 6.0]),
        "mask": jnp.asarray([True, True, False, True]),
    }
    state, metrics = step(
        init_state({"params": {"w": jnp.asarray(1.0)}}, optimizer), data, 0.1, KEY
    )
    np.testing.assert_allclose(state["model"]["params"]["w"], 0.7, rtol=1e-6)
    assert metrics["loss"] == (9.0, 3)
    draws = [jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(2)]
    np.testing.assert_allclose(metrics["noise"][0], sum(draws), rtol=1e-6)


def test_accumulation_equals_steps_on_parts():
    """Gradients are those of the parts' mean, and BatchNorm sees the parts in turn."""
    net = network()
    loss_fn = classification_loss(net)
    data = batch(12)
    accumulated, _ = make_train_step(loss_fn, sgd(), accumulate=3)(
        init_state(net.init(), sgd()), data, 0.1, KEY
    )
    gradient = jax.jit(
        jax.grad(lambda p, m, b: loss_fn({**m, "params": p}, b, None, True), has_aux=True)
    )
    model, total = net.init(), None
    for part in range(3):
        piece = jax.tree.map(lambda x, part=part: x[part::3], data)
        grads, (stats, _) = gradient(model["params"], model, piece)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        model = {**model, "batch_stats": stats}
    expected = jax.tree.map(lambda p, g: p - 0.1 * g / 3, model["params"], total)
    assert_close(accumulated["model"]["params"], expected, atol=1e-6)
    assert_close(accumulated["model"]["batch_stats"], model["batch_stats"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_sharded_step_equals_single_device(accumulate, groups):
    net = network(bn_groups=groups)
    step = make_train_step(classification_loss(net), sgd(weight_decay=1e-4), accumulate=accumulate)
    single = init_state(net.init(), sgd())
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    assert mesh.size == 4
    sharded = jax.device_put(init_state(net.init(), sgd()), NamedSharding(mesh, P()))
    for number in range(3):
        data = batch(16, number)
        single, metrics = step(single, data, 0.1, KEY)
        split = jax.device_put(data, NamedSharding(mesh, P("data")))
        sharded, sharded_metrics = step(sharded, split, 0.1, KEY)
        assert_close(sharded_metrics, metrics, rtol=1e-5)
    assert_close(sharded, single, rtol=1e-4, atol=1e-5)
    kernel = sharded["model"]["params"]["conv1"]["kernel"]
    assert kernel.sharding.is_fully_replicated
    assert len(kernel.sharding.device_set) == 4


def test_learns_and_compiles_once_whatever_the_rate():
    net = network()
    step = make_train_step(classification_loss(net), sgd())
    state = init_state(net.init(), sgd())
    data = batch(20)
    data["label"] = data["label"] % 2
    data["image"] = data["image"] + batch(2, 1)["image"][data["label"]]
    losses = []
    for number in range(30):
        state, metrics = step(state, data, 0.1 / (1 + 0.01 * number), KEY)
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < 0.5 * losses[0]
    assert step._cache_size() == 1


def test_donates_its_state():
    net = network()
    step = make_train_step(classification_loss(net), sgd())
    state = init_state(net.init(), sgd())
    step(state, batch(), 0.1, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_evaluation_is_masked_and_ignores_smoothing():
    net = network()
    model = net.init()
    plain = make_eval_step(classification_loss(net))(model, batch(10))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:6]]), batch(10))
    padded["mask"] = jnp.arange(16) < 10
    smooth = make_eval_step(classification_loss(net, label_smoothing=0.1))(model, padded)
    assert_close(plain, smooth, rtol=1e-6)
    assert int(smooth["loss"][1]) == 10


def test_nan_reaches_the_metrics():
    net = network()
    data = batch()
    data["image"] = data["image"].at[0].set(jnp.nan)
    step = make_train_step(classification_loss(net), sgd())
    _, metrics = step(init_state(net.init(), sgd()), data, 0.1, KEY)
    assert np.isnan(metrics["loss"][0])


def test_moments_function_counts_values():
    net = network()
    stats = moments_fn(net)(net.init(), batch(16))
    assert int(stats["bn1"]["count"]) == 16 * 64
    assert int(stats["layer1"]["0"]["bn1"]["count"]) == 16 * 64


def test_errors():
    with pytest.raises(ValueError, match="accumulate must be at least 1, found 0"):
        make_train_step(linear_loss, sgd(), accumulate=0)
    net = network()
    step = make_train_step(classification_loss(net), sgd(), accumulate=3)
    with pytest.raises(ValueError, match="batch of 16 does not split into 3 equal parts"):
        step(init_state(net.init(), sgd()), batch(16), 0.1, KEY)
