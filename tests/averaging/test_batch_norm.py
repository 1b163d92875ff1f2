import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.averaging.batch_norm import (
    batch_statistics,
    recalibrate,
    recalibrate_torch,
    select_statistics,
)
from lawa_jax.errors import NonFiniteError, TreeMismatchError
from lawa_jax.models.functional import functional
from lawa_jax.models.normalization import BatchNorm


def batch_norm_model(**options):
    network = functional(lambda rngs: BatchNorm(2, **options))
    return network, network.init(0)


def counting(network):
    return jax.jit(lambda tree, x: network.apply(tree, x, train=True, moments=True)[1])


def moving(network):
    return jax.jit(lambda tree, x: network.apply(tree, x, train=True)[1])


def column(*values):
    """Values of one channel, and ten times them of the other."""
    return np.stack([np.asarray(values, np.float32), 10 * np.asarray(values, np.float32)], axis=1)


def test_hand_computed():
    """Batches {0, 2} and {4, 6, 8}: mean 4, squared distances 16+4+0+4+16 = 40, over n-1 = 4."""
    network, model = batch_norm_model()
    result = recalibrate(counting(network), model, [column(0, 2), column(4, 6, 8)])
    np.testing.assert_allclose(result["batch_stats"]["mean"], [4, 40], rtol=1e-6)
    np.testing.assert_allclose(result["batch_stats"]["var"], [10, 1000], rtol=1e-6)
    assert result["params"] is model["params"]
    assert result["batch_stats"].keys() == {"mean", "var"}
    np.testing.assert_array_equal(model["batch_stats"]["mean"], [0, 0])


def test_hand_computed_as_torch():
    """Means 1 and 6 give 3.5; unbiased variances 2 and 4 give 3; sizes do not matter."""
    network, model = batch_norm_model()
    for apply_fn in (counting(network), moving(network)):
        result = recalibrate_torch(apply_fn, model, [column(0, 2), column(4, 6, 8)])
        np.testing.assert_allclose(result["batch_stats"]["mean"], [3.5, 35], rtol=1e-6)
        np.testing.assert_allclose(result["batch_stats"]["var"], [3, 300], rtol=1e-6)


class Linen(linen.Module):
    momentum: float = 0.9

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False, momentum=self.momentum)(x)
        return linen.BatchNorm(use_running_average=False, momentum=0.37, name="second")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs, momentum):
        self.bn = nnx.BatchNorm(2, momentum=momentum, rngs=rngs)
        self.second = nnx.BatchNorm(2, momentum=0.37, rngs=rngs)

    def __call__(self, x, *, train):
        return self.second(self.bn(x, use_running_average=not train), use_running_average=not train)


def linen_model(momentum):
    module = Linen(momentum)
    variables = module.init(jax.random.key(0), jnp.zeros((3, 2)))

    @jax.jit
    def apply_fn(tree, x):
        return module.apply(tree, x, mutable=["batch_stats"])[1]["batch_stats"]

    return apply_fn, variables, "BatchNorm_0"


def nnx_model(momentum):
    network = functional(lambda rngs: Nnx(rngs, momentum))
    return moving(network), network.init(0), "bn"


@pytest.mark.parametrize("make", [linen_model, nnx_model])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999])
def test_flax_batch_norms_by_their_updates_alone(make, momentum):
    """Whatever momentum: pooled biased moments, from old statistics that are anything but zero."""
    apply_fn, tree, name = make(momentum)
    stats = jax.tree.map(lambda x: x + 7.0, tree["batch_stats"])
    batches = [column(0, 2), column(4, 6, 8)]
    result = recalibrate(apply_fn, {**tree, "batch_stats": stats}, batches)["batch_stats"]
    np.testing.assert_allclose(result[name]["mean"], [4, 40], rtol=1e-6)
    np.testing.assert_allclose(result[name]["var"], [8, 800], rtol=1e-6)
    # The second sees each batch normalised by the first: mean 0, variance 1 (but for epsilon).
    np.testing.assert_allclose(result["second"]["mean"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(result["second"]["var"], [1, 1], rtol=1e-4)


def test_plain_nnx_states():
    """As the module's text says, with a generator's state in the model, too."""
    model = Nnx(nnx.Rngs(0), 0.9)
    model.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    graphdef, statistics, rest = nnx.split(model, nnx.BatchStat, ...)

    @jax.jit
    def apply_fn(tree, x):
        merged = nnx.merge(graphdef, tree["batch_stats"], tree["rest"])
        merged.dropout(merged(x, train=True))
        return nnx.state(merged, nnx.BatchStat)

    batches = [column(0, 2), column(4, 6, 8)]
    new = recalibrate(apply_fn, {"batch_stats": statistics, "rest": rest}, batches)
    nnx.update(model, new["batch_stats"])
    np.testing.assert_allclose(model.bn.mean[...], [4, 40], rtol=1e-6)
    np.testing.assert_allclose(model.bn.var[...], [8, 800], rtol=1e-6)


def test_statistics_elsewhere_are_not_passed_over():
    tree = {"model": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
    with pytest.raises(TreeMismatchError, match="under 'batch_stats', found 'model/bn/mean'"):
        recalibrate(lambda tree, x: {}, tree, [column(1)])


@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 3000.0]),
    seed=st.integers(0, 99),
)
def test_pooled_moments_are_those_of_all_samples_in_any_order(sizes, offset, seed):
    random = np.random.default_rng(seed)
    batches = [random.normal(offset, 1, (n, 2)).astype(np.float32) for n in sizes]
    everything = np.concatenate(batches).astype(np.float64)
    forward = recalibrate(COUNTING, MODEL, batches)["batch_stats"]
    backward = recalibrate(COUNTING, MODEL, batches[::-1])["batch_stats"]
    np.testing.assert_allclose(forward["mean"], everything.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(forward["var"], everything.var(0, ddof=1), rtol=2e-3)
    for key in ("mean", "var"):
        np.testing.assert_allclose(forward[key], backward[key], rtol=1e-6)


NETWORK, MODEL = batch_norm_model()
COUNTING = counting(NETWORK)


def test_spatial_positions_count():
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    result = recalibrate(COUNTING, MODEL, [x[:1], x[1:]])["batch_stats"]
    np.testing.assert_allclose(result["mean"], x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(result["var"], x.reshape(-1, 2).var(0, ddof=1), rtol=1e-5)


def test_samples_can_be_told():
    """Two padded batches of two, of which the second holds one sample twice: counted as one."""
    apply_fn, tree, name = linen_model(0.9)
    sizes = iter([2, 1])
    result = recalibrate(
        apply_fn, tree, [column(0, 2), column(4, 4)], samples=lambda _: next(sizes)
    )
    np.testing.assert_allclose(result["batch_stats"][name]["mean"], [2, 20], rtol=1e-6)


def test_keeps_dtype_and_container():
    tree = {**MODEL, "batch_stats": jax.tree.map(np.asarray, MODEL["batch_stats"])}
    result = recalibrate(COUNTING, tree, [column(0, 2)])
    assert isinstance(result["batch_stats"]["mean"], np.ndarray)
    apply_fn, tree, name = linen_model(0.9)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree["batch_stats"])
    result = recalibrate(apply_fn, {**tree, "batch_stats": narrow}, [column(0, 2)])
    assert result["batch_stats"][name]["mean"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result["batch_stats"][name]["mean"].astype(np.float32), [1, 10])


def test_a_model_without_batch_norm_is_returned_as_it_is():
    tree = {"params": {"x": jnp.ones(2)}}
    assert recalibrate(COUNTING, tree, iter([column(1, 2)])) is tree


def test_errors():
    with pytest.raises(ValueError, match="needs at least one batch, found none"):
        recalibrate(COUNTING, MODEL, [])
    with pytest.raises(NonFiniteError, match=r"batch 1 .* NaN or infinite moments at BatchNorm \."):
        recalibrate(COUNTING, MODEL, [column(1, 2), column(1, np.nan)])
    with pytest.raises(ValueError, match=r"keeps 1 of its old statistics .* train mode"):
        recalibrate(lambda tree, x: tree["batch_stats"], MODEL, [column(1, 2)])
    with pytest.raises(TreeMismatchError, match=r"no leaf 'var'"):
        recalibrate(lambda tree, x: {"mean": jnp.zeros(2)}, MODEL, [column(1, 2)])
    with pytest.raises(TreeMismatchError, match="batch_stats/mean has no 'var' beside it"):
        recalibrate(COUNTING, {"batch_stats": {"mean": jnp.zeros(2)}}, [column(1, 2)])
    with pytest.raises(ValueError, match="pass samples="):
        recalibrate(COUNTING, MODEL, [{}])


def test_recognised_names():
    names = {
        "params/bn/scale",
        "params/head/mean",  # no partner: not a statistic as far as names tell
        "batch_stats/bn/anything",
        "bn1/mean",
        "bn1/var",
        "bn1/scale",
        "layer/0/bn/mean/value",
        "layer/0/bn/var/value",
        "model/bn/running_mean",
        "model/bn/running_var",
        "model/bn/num_batches_tracked",
    }
    assert batch_statistics(names) == {
        "batch_stats/bn/anything",
        "bn1/mean",
        "bn1/var",
        "layer/0/bn/mean/value",
        "layer/0/bn/var/value",
        "model/bn/running_mean",
        "model/bn/running_var",
    }


def test_policies():
    average = {"params": {"w": 1.0}, "batch_stats": {"bn": {"mean": 1.0, "var": 1.0}}}
    newest = {"params": {"w": 2.0}, "batch_stats": {"bn": {"mean": 2.0, "var": 2.0}}}
    assert select_statistics(average, newest, "average") == average
    assert select_statistics(average, newest, "recalibrate") == average
    assert select_statistics(average, newest, "latest") == {
        "params": {"w": 1.0},
        "batch_stats": {"bn": {"mean": 2.0, "var": 2.0}},
    }
    with pytest.raises(ValueError, match=r"unknown BatchNorm policy 'best'; choose from recal"):
        select_statistics(average, newest, "best")
    with pytest.raises(TreeMismatchError, match="'batch_stats/bn/mean' is a BatchNorm statistic"):
        select_statistics(average, {"params": {"w": 2.0}}, "latest")
