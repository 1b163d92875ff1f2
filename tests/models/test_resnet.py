import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lawa_jax.models.functional import functional
from lawa_jax.models.resnet import ARCHITECTURES, ResNet, resnet
from lawa_jax.tree import named_leaves

DIGITS = {"stem": "cifar", "in_channels": 1, "num_classes": 10}


def digits(stage_sizes=(1, 1), widths=(4, 8), **options):
    return functional(lambda rngs: ResNet(stage_sizes, widths, **{**DIGITS, **options}, rngs=rngs))


@functools.cache
def initial():
    return digits().init(0)


def apply(network, model, x, train):
    return jax.jit(functools.partial(network.apply, train=train))(model, x)


@pytest.mark.parametrize(
    ("arch", "parameters", "tensors"),
    [
        # torchvision's own figures
        ("resnet18", 11_689_512, 62),
        ("resnet34", 21_797_672, 110),
        ("resnet50", 25_557_032, 161),
        ("resnet101", 44_549_160, 314),
        ("resnet152", 60_192_808, 467),
    ],
)
def test_sizes(arch, parameters, tensors):
    network = functional(lambda rngs: resnet(arch, rngs=rngs))
    params = jax.tree.leaves(jax.eval_shape(lambda: network.init(0))["params"])
    assert sum(leaf.size for leaf in params) == parameters
    assert len(params) == tensors


def test_digits_network_has_175k_parameters():
    model = jax.eval_shape(lambda: digits((2, 2, 2), (16, 32, 64)).init(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(model["params"])) == 174_970


def test_names_follow_torchvision():
    network = functional(lambda rngs: resnet("resnet50", rngs=rngs))
    names = set(named_leaves(jax.eval_shape(lambda: network.init(0))))
    assert {
        "params/conv1/kernel",
        "params/bn1/scale",
        "params/layer1/0/downsample/conv/kernel",
        "params/layer1/0/downsample/bn/bias",
        "params/layer4/2/conv3/kernel",
        "params/fc/kernel",
        "params/fc/bias",
        "batch_stats/layer4/2/bn3/var",
    } <= names
    assert "params/layer1/1/downsample/conv/kernel" not in names
    assert not any("count" in name for name in names)


def test_initialisation_is_torchvisions():
    params = digits((1, 1), (64, 128)).init(3)["params"]
    kernel = np.asarray(params["layer2"]["0"]["conv1"]["kernel"])
    assert kernel.shape == (3, 3, 64, 128)
    # kaiming fan_out: variance 2 / (9 * outputs), an untruncated normal
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()
    bound = 1 / np.sqrt(128)
    for leaf in params["fc"].values():
        assert np.abs(leaf).max() <= bound
    assert np.asarray(params["fc"]["kernel"]).std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert np.asarray(params["fc"]["bias"]).std() > 0
    np.testing.assert_array_equal(params["bn1"]["scale"], np.ones(64))


def test_same_seed_same_weights():
    network = digits()
    for a, b, c in zip(
        *(jax.tree.leaves(network.init(seed)["params"]["fc"]) for seed in (0, 0, 1)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_bfloat16_compute_keeps_float32_parameters_statistics_and_logits():
    narrow, wide = digits(dtype=jnp.bfloat16), digits()
    model = initial()
    x = jax.random.normal(jax.random.key(0), (32, 8, 8, 1))
    logits, stats = apply(narrow, model, x, train=True)
    expected, expected_stats = apply(wide, model, x, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, expected, atol=0.05)
    # Convolutions did run in bfloat16.
    assert not np.array_equal(
        stats["layer2"]["0"]["bn2"]["mean"], expected_stats["layer2"]["0"]["bn2"]["mean"]
    )
    fresh = jax.eval_shape(lambda: narrow.init(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_evaluation_moves_nothing_and_does_not_mix_samples():
    network = digits()
    model = initial()
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    logits, stats = apply(network, model, x, train=False)
    jax.tree.map(np.testing.assert_array_equal, stats, model["batch_stats"])
    np.testing.assert_allclose(apply(network, model, x[:1], train=False)[0], logits[:1], rtol=1e-5)


def test_groups_equal_separate_batches():
    grouped, whole = digits(bn_groups=2), digits()
    model = initial()
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    logits, stats = apply(grouped, model, x, train=True)
    first, first_stats = apply(whole, model, x[:4], train=True)
    second, _ = apply(whole, model, x[4:], train=True)
    np.testing.assert_allclose(logits, jnp.concatenate([first, second]), atol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (stats, first_stats)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_errors():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="unknown architecture 'resnet20'; choose from resnet18, "):
        resnet("resnet20", rngs=rngs)
    with pytest.raises(ValueError, match="unknown block 'wide'"):
        ResNet(block="wide", rngs=rngs)
    with pytest.raises(ValueError, match="unknown stem 'none'"):
        ResNet(stem="none", rngs=rngs)
    with pytest.raises(ValueError, match="must have one entry for each stage"):
        ResNet((1, 1), (4,), rngs=rngs)
    assert list(ARCHITECTURES) == [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
