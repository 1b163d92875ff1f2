"""Rings and running averages of parameters inside optax chains."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training import train_state

from lawa_jax import average, average_checkpoints
from lawa_jax.averaging import coefficients
from lawa_jax.errors import SelectionError
from lawa_jax.online import (
    RingState,
    averaged_params,
    bias_corrected_average,
    exponential_average,
    latest_weight_averaging,
    power_average,
    restart_from_average,
)


@pytest.fixture(autouse=True)
def _promotion():
    """optax's own optimizers mix int32 counters with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


PARAMS = {"w": np.float32([1.0, 2.0, 3.0]), "b": {"c": np.float32(0.5)}}


def train(optimizer, steps, params=None, jit=True):
    """Parameters after every update, and the last optimizer state."""
    params = jax.tree.map(jnp.asarray, PARAMS if params is None else params)

    def step(params, state, x):
        loss = lambda p: jnp.sum((p["w"] * x - 1) ** 2) + (p["b"]["c"] - x[0]) ** 2  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    state, seen = optimizer.init(params), []
    for number in range(steps):
        x = jnp.asarray(np.random.default_rng(number).normal(size=3), jnp.float32)
        params, state = step(params, state, x)
        seen.append(params)
    return seen, state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_by_hand():
    optimizer = optax.chain(optax.sgd(1.0), latest_weight_averaging(k=2))
    params = {"w": jnp.float32([10.0])}
    state = optimizer.init(params)
    for gradient in (1.0, 2.0, 4.0):  # 9, 7, 3
        updates, state = optimizer.update({"w": jnp.float32([gradient])}, state, params)
        params = optax.apply_updates(params, updates)
    assert averaged_params(state)["w"] == 5.0
    assert averaged_params(state, kind="linear")["w"] == pytest.approx((7 + 2 * 3) / 3)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("memory", ["device", "host"])
def test_online_equals_the_average_of_what_was_seen_bit_for_bit(k, every, memory):
    averaging = latest_weight_averaging(k, every, start=4, memory=memory)
    optimizer = optax.chain(optax.adam(0.1), averaging)
    for steps in (4, 7, 12, 17):
        seen, state = train(optimizer, steps)
        kept = [p for n, p in enumerate(seen, 1) if n % every == 0 and n >= 4][-k:]
        if kept:
            same(averaged_params(state), average(kept))
        else:
            with pytest.raises(SelectionError, match="no parameters are stored yet"):
                averaged_params(state)


def test_the_trajectory_is_untouched():
    bare, _ = train(optax.adam(0.1), 8)
    for extra in (
        latest_weight_averaging(3, 2),
        latest_weight_averaging(3, 2, memory="host"),
        exponential_average(0.9),
        power_average(6.94),
        bias_corrected_average(),
    ):
        watched, _ = train(optax.chain(optax.adam(0.1), extra), 8)
        same(bare, watched)


def test_switched_off_it_keeps_nothing():
    _, state = train(optax.chain(optax.sgd(0.1), latest_weight_averaging(2, enabled=False)), 3)
    assert not jax.tree.leaves(state[-1])
    with pytest.raises(SelectionError, match="found 0"):
        averaged_params(state)


@pytest.mark.parametrize("kind", ["uniform", "linear", "ema:0.8"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_read_out_under_jit(kind, steps):
    _, state = train(optax.chain(optax.adam(0.1), latest_weight_averaging(3)), steps)
    inside = jax.jit(lambda s: averaged_params(s, kind=kind))(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        inside,
        averaged_params(state, kind=kind),
    )


def test_inside_scan_and_multi_steps_and_hyperparameters():
    chain = optax.chain(optax.adam(0.1), latest_weight_averaging(2))
    params = jax.tree.map(jnp.asarray, PARAMS)
    gradients = jax.tree.map(lambda p: jnp.ones((6, *p.shape), p.dtype), params)

    def body(carry, gradient):
        params, state = carry
        updates, state = chain.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), seen = jax.lax.scan(body, (params, chain.init(params)), gradients)
    last = [jax.tree.map(lambda s, i=i: s[i], seen) for i in (4, 5)]
    same(averaged_params(state), average(last))

    several = optax.MultiSteps(chain, every_k_schedule=2)
    seen, state = train(several, 8)
    same(averaged_params(state), average([seen[5], seen[7]]))

    injected = optax.chain(
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), latest_weight_averaging(2)
    )
    seen, state = train(injected, 5)
    same(averaged_params(state), average(seen[-2:]))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_only_one_slot_is_written_and_only_when_due(dtype):
    params = {"w": jnp.ones((64, 32))}
    optimizer = latest_weight_averaging(5, 100, dtype=dtype)

    def update(state, params):
        return optimizer.update(params, state, params)[1]

    step = jax.jit(update, donate_argnums=0)
    program = step.lower(optimizer.init(params), params).compile()
    text = program.as_text()
    kept = "bf16" if dtype else "f32"
    assert f"{kept}[5,64,32]" in text
    if dtype:
        # The ring is not widened to be written to, nor the copy made before it is due.
        assert "f32[5,64,32]" not in text
        body = text[text.index("ENTRY") :]
        assert "bf16[64,32]" not in body
        assert "bf16[1,64,32]" not in body
    # In place: not even a copy of two slots is made on the way.
    assert program.memory_analysis().temp_size_in_bytes < 2 * params["w"].nbytes


def test_copies_in_bfloat16_come_back_wider_on_request():
    optimizer = optax.chain(optax.sgd(0.01), latest_weight_averaging(2, dtype=jnp.bfloat16))
    seen, state = train(optimizer, 3)
    narrow = [jax.tree.map(lambda p: p.astype(jnp.bfloat16), p) for p in seen[-2:]]
    same(averaged_params(state, dtype="float32"), average(narrow, dtype="float32"))
    assert averaged_params(state)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("memory", ["device", "host"])
@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_the_ring_is_sharded_like_the_parameters(axis_type, memory):
    mesh = jax.make_mesh((4,), ("x",), (axis_type,), devices=jax.devices()[:4])
    split = jax.NamedSharding(mesh, jax.P("x"))
    params = {"w": jax.device_put(jnp.arange(8, dtype=jnp.float32), split)}
    optimizer = optax.chain(optax.sgd(0.5), latest_weight_averaging(2, memory=memory))
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    seen = []
    for _ in range(3):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    ring = state[-1].ring["w"]
    assert {shard.data.shape for shard in ring.addressable_shards} == {(2, 2)}
    assert ring.sharding.memory_kind == ("pinned_host" if memory == "host" else "device")
    same(averaged_params(state), average(seen[-2:]))
    inside = jax.jit(averaged_params)(state)["w"]
    np.testing.assert_allclose(inside, averaged_params(state)["w"], rtol=1e-6)
    assert inside.sharding.memory_kind == "device"


def test_exponential_average_is_its_recursion():
    seen, state = train(optax.chain(optax.adam(0.1), exponential_average(0.75)), 6)
    mean = np.asarray(seen[0]["w"], np.float64)
    for params in seen[1:]:
        mean = 0.75 * mean + 0.25 * np.asarray(params["w"], np.float64)
    np.testing.assert_allclose(averaged_params(state)["w"], mean, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_power_average_is_its_closed_form(gamma):
    seen, state = train(optax.chain(optax.adam(0.1), power_average(gamma)), 9)
    t = np.arange(10, dtype=np.float64) / 9
    c = np.diff(t ** (gamma + 1))
    expected = sum(w * np.asarray(p["w"], np.float64) for w, p in zip(c, seen, strict=True))
    np.testing.assert_allclose(averaged_params(state)["w"], expected, rtol=2e-5)


def test_bias_corrected_average_by_hand():
    # t = 0, 1, 2 with rho 4, gamma 5, kappa = eta = 1/2: widths 4, 9, 14.
    averaging = bias_corrected_average(bias_power=0.5, multiplier=5, lag=4)
    state, results = averaging.init({"w": jnp.float32([0.0])}), []
    for value in (1.0, 4.0, 2.0):
        _, state = averaging.update({"w": jnp.zeros(1)}, state, {"w": jnp.float32([value])})
        results.append(float(averaged_params(state)["w"][0]))
    first = 1 + (4 - 1) / 3  # the mean after 4.0
    second = first + (2 - first) / 14**0.5
    expected = [1.0, first + (4 - 1) / 3, second + (2 - 1) / 14**0.5]
    np.testing.assert_allclose(results, expected, rtol=1e-6)


def test_bias_correction_counts_updates_and_not_looks():
    averaging = bias_corrected_average(every=2, bias_power=0.5, multiplier=5, lag=4)
    state = averaging.init({"w": jnp.float32([0.0])})
    for value in (9.0, 1.0, 9.0, 4.0):
        _, state = averaging.update({"w": jnp.zeros(1)}, state, {"w": jnp.float32([value])})
    share = 14**-0.5  # t = 2
    expected = 1 + share * 3 + share * 3
    np.testing.assert_allclose(averaged_params(state)["w"], [expected], rtol=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_bias_corrected_average_is_the_same_combination_of_checkpoints(every):
    optimizer = optax.chain(optax.sgd(0.1), bias_corrected_average(every, bias_power=0.4))
    seen, state = train(optimizer, 12)
    steps = range(every, 13, every)
    c = coefficients.of_method("bema:0.4", steps)
    expected = sum(w * seen[step - 1]["w"] for w, step in zip(c, steps, strict=True))
    np.testing.assert_allclose(averaged_params(state)["w"], expected, rtol=1e-5)


def test_restart_from_the_average():
    optimizer = optax.chain(optax.adam(0.1), latest_weight_averaging(2))
    seen, state = train(optimizer, 4)
    params, fresh = restart_from_average(optimizer, state)
    same(params, average(seen[-2:]))
    assert int(fresh[-1].stored) == 0
    _, kept = restart_from_average(optimizer, state, reset=False)
    assert kept is state


def test_restart_keeps_dtypes_and_what_is_masked():
    masked = optax.masked(latest_weight_averaging(2, dtype=jnp.bfloat16), {"w": True, "b": False})
    optimizer = optax.chain(optax.adam(0.1), masked)
    seen, state = train(optimizer, 4)
    with pytest.raises(SelectionError, match="masked and have no average; give the present"):
        restart_from_average(optimizer, state)
    params, fresh = restart_from_average(optimizer, state, params=seen[-1])
    assert params["w"].dtype == jnp.float32
    np.testing.assert_allclose(params["w"], average(seen[-2:])["w"], rtol=2**-7)
    same(params["b"], seen[-1]["b"])
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh[0][0].mu)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "averaging",
    [
        exponential_average(0.5),
        power_average(3.0),
        bias_corrected_average(),
        latest_weight_averaging(2),
    ],
)
def test_what_is_read_outlives_a_step_that_donates(averaging):
    optimizer = optax.chain(optax.sgd(0.1), averaging)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.array, PARAMS)
    params, state = step(params, optimizer.init(params))
    mean = averaged_params(state)
    before = jax.tree.map(np.array, mean)
    params, state = step(*restart_from_average(optimizer, state, params=params, reset=False))
    same(mean, before)


@pytest.mark.parametrize("memory", ["device", "host"])
@pytest.mark.parametrize(("saved", "wanted"), [(3, 5), (5, 3)])
def test_a_state_of_another_k_is_refused(saved, wanted, memory):
    # Orbax's PyTreeCheckpointer restores the shapes that were saved, whatever it is given.
    _, state = train(latest_weight_averaging(saved, memory=memory), 4)
    optimizer = latest_weight_averaging(wanted, memory=memory)
    params = jax.tree.map(jnp.asarray, PARAMS)
    with pytest.raises(
        SelectionError, match=f"made with k={saved}, this optimizer with k={wanted}"
    ):
        jax.jit(optimizer.update)(params, state, params)


@pytest.mark.parametrize(
    "make", [partial(exponential_average, 0.999), partial(power_average, 999.0)]
)
def test_a_running_average_of_bfloat16_does_not_stall(make):
    ones = {"w": jnp.ones(2, jnp.bfloat16)}

    @jax.jit
    def many(state):
        turn = lambda _, s: averaging.update(jax.tree.map(jnp.zeros_like, ones), s, ones)[1]  # noqa: E731
        return jax.lax.fori_loop(0, 5000, turn, state)

    averaging = make()
    zeros = jax.tree.map(jnp.zeros_like, ones)
    _, state = averaging.update(zeros, averaging.init(zeros), zeros)
    mean = averaged_params(many(state))
    assert mean["w"].dtype == jnp.float32
    assert float(mean["w"][0]) > 0.99
    # In bfloat16 on request.
    averaging = make(dtype=jnp.bfloat16)
    assert averaging.init(zeros).mean["w"].dtype == jnp.bfloat16


def test_switched_off_running_averages_keep_nothing():
    for averaging in (
        exponential_average(0.5, enabled=False),
        power_average(3.0, enabled=False),
        bias_corrected_average(enabled=False),
    ):
        assert not jax.tree.leaves(averaging.init(PARAMS))


def test_of_two_averages_each_can_be_read():
    optimizer = optax.chain(optax.sgd(0.1), exponential_average(0.5), latest_weight_averaging(1))
    seen, state = train(optimizer, 3)
    same(averaged_params(state[-1]), seen[-1])
    assert np.any(averaged_params(state[-2])["w"] != seen[-1]["w"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: latest_weight_averaging(2.0), "k: expected an integer >= 1, found 2.0"),
        (lambda: latest_weight_averaging(float("nan")), "k: expected an integer >= 1, found nan"),
        (lambda: latest_weight_averaging(None), "k: expected an integer >= 1, found None"),
        (
            lambda: averaged_params(train(exponential_average(0.5), 1)[1], k=3),
            "are for latest_weight_averaging",
        ),
        (
            lambda: averaged_params(train(exponential_average(0.5), 1)[1], kind="linear"),
            "are for latest_weight_averaging",
        ),
        (
            lambda: averaged_params(
                train(optax.masked(latest_weight_averaging(2), {"w": False, "b": False}), 2)[1]
            ),
            "given no parameters",
        ),
        (lambda: latest_weight_averaging(0), "k: expected an integer >= 1, found 0"),
        (lambda: latest_weight_averaging(1, 0), "every: expected an integer >= 1, found 0"),
        (lambda: exponential_average(1.0), "decay: expected in"),
        (lambda: power_average(-1.0), "gamma: expected >= 0"),
        (lambda: averaged_params(optax.sgd(1.0).init(PARAMS)), "found 0"),
        (lambda: latest_weight_averaging(2.5), "k: expected an integer >= 1, found 2.5"),
        (lambda: latest_weight_averaging(2, memory="disk"), "memory: expected 'device' or"),
        (lambda: bias_corrected_average(lag=0.5), "lag >= 1"),
        (
            lambda: averaged_params(
                optax.chain(exponential_average(0.5), latest_weight_averaging(1)).init(PARAMS)
            ),
            "found 2",
        ),
        (
            lambda: averaged_params(train(latest_weight_averaging(3), 1)[1], k=5),
            "made with k=3, expected k=5",
        ),
        (
            lambda: averaged_params(
                train(optax.chain(latest_weight_averaging(1), optax.sgd(1.0)), 1)[1]
            ),
            "not last in its chain",
        ),
        (
            lambda: latest_weight_averaging(1).update(
                PARAMS, latest_weight_averaging(1).init(PARAMS)
            ),
            "averaging needs",
        ),
        (
            lambda: averaged_params(train(latest_weight_averaging(2), 2)[1], kind="bema"),
            "use bias_corrected_average",
        ),
    ],
)
def test_wrong_use_is_explained(make, message):
    with pytest.raises(SelectionError, match=message):
        make()


def test_the_state_is_a_plain_pytree_of_arrays():
    _, state = train(optax.chain(optax.sgd(0.1), latest_weight_averaging(2)), 3)
    assert isinstance(state[-1], RingState)
    copied = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))
    same(averaged_params(copied), averaged_params(state))


def test_only_some_leaves():
    watched = optax.masked(latest_weight_averaging(2), {"w": True, "b": False})
    seen, state = train(optax.chain(optax.adam(0.1), watched), 4)
    mean = averaged_params(state)
    same(mean["w"], average(seen[-2:])["w"])
    assert isinstance(mean["b"], optax.MaskedNode)


def test_integer_leaves_come_from_the_newest():
    averaging = latest_weight_averaging(2)
    state = averaging.init({"n": jnp.int32(0)})
    for value in (3, 8):
        _, state = averaging.update({"n": jnp.int32(0)}, state, {"n": jnp.int32(value)})
    assert averaged_params(state)["n"] == 8
    assert jax.jit(averaged_params)(state)["n"] == 8


def test_with_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.adam(0.1), latest_weight_averaging(2)), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model))

    seen = []
    for number in range(3):
        step(model, optimizer, jnp.ones((4, 3)) * (number + 1))
        seen.append(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    mean = averaged_params(optimizer.opt_state)
    same(nnx.to_pure_dict(mean), average(seen[-2:]))
    nnx.update(model, mean)
    same(nnx.to_pure_dict(nnx.state(model, nnx.Param)), average(seen[-2:]))
    # Going on from it, as docs/online.md says.
    optimizer = nnx.Optimizer(model, optimizer.tx, wrt=nnx.Param)
    step(model, optimizer, jnp.ones((4, 3)))
    assert int(optimizer.opt_state[-1].updates.get_value()) == 1


def test_with_a_linen_train_state():
    module = linen.Dense(2)
    x = jnp.ones((4, 3))
    state = train_state.TrainState.create(
        apply_fn=module.apply,
        params=module.init(jax.random.key(0), x)["params"],
        tx=optax.chain(optax.adam(0.1), latest_weight_averaging(2)),
    )

    @jax.jit
    def step(state):
        loss = lambda p: jnp.mean(state.apply_fn({"params": p}, x) ** 2)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    seen = []
    for _ in range(3):
        state = step(state)
        seen.append(state.params)
    same(averaged_params(state.opt_state), average(seen[-2:]))


def test_online_equals_the_average_of_checkpoints_bit_for_bit(tmp_path):
    optimizer = optax.chain(optax.adam(0.1), latest_weight_averaging(3, every=2))
    seen, state = train(optimizer, 9)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in range(2, 10, 2):
            manager.save(step, args=ocp.args.StandardSave(seen[step - 1]))
    same(averaged_params(state), average_checkpoints(tmp_path / "run", k=3, end=8))


@pytest.mark.parametrize("memory", ["device", "host"])
def test_saved_and_restored_like_any_optimizer_state(tmp_path, memory):
    optimizer = optax.chain(optax.adam(0.1), latest_weight_averaging(2, memory=memory))
    _, state = train(optimizer, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    same(restored, state)
    same(averaged_params(restored), averaged_params(state))
    assert restored[-1].ring["w"].sharding == state[-1].ring["w"].sharding
