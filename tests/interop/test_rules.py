import numpy as np
import pytest

from lawa_jax.interop.rules import (
    Match,
    Rule,
    common_prefix,
    copied_as_ours,
    laid_out_as_ours,
    laid_out_as_theirs,
    shape_as_ours,
    to_ours,
    to_theirs,
)

RULES = (
    Rule("layer{s}.{b}.conv{k}.weight", "params/layer{s}/{b}/conv{k}/kernel", "conv"),
    Rule("{p:q|k}_proj.weight", "params/{p}/kernel", "linear"),
)


def test_both_directions():
    ours = Match("params/layer1/10/conv2/kernel", "conv")
    assert to_ours(RULES, "layer1.10.conv2.weight") == ours
    assert to_theirs(RULES, ours.name) == Match("layer1.10.conv2.weight", "conv")
    assert to_ours(RULES, "q_proj.weight") == Match("params/q/kernel", "linear")
    assert to_theirs(RULES, "params/k/kernel") == Match("k_proj.weight", "linear")


@pytest.mark.parametrize(
    "name", ["layer1.01.conv2.weight", "xlayer1.0.conv1.weight", "v_proj.weight", "q_projXweight"]
)
def test_nothing_else_fits(name):
    assert to_ours(RULES, name) is None


def test_layouts_by_hand():
    conv = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    ours = laid_out_as_ours(conv, "conv")
    assert ours.shape == (5, 7, 3, 2) == shape_as_ours(conv.shape, "conv")
    assert ours[4, 6, 2, 1] == conv[1, 2, 4, 6]
    np.testing.assert_array_equal(laid_out_as_theirs(ours, "conv"), conv)
    assert laid_out_as_ours(np.ones((2, 3)), "linear").shape == (3, 2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (16, 3, 1, 1), (33, 2, 3, 3), (17, 0, 2, 2)])
def test_blocked_copies_are_transpositions(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    copy = copied_as_ours(array, "conv")
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, array.transpose(2, 3, 1, 0))


def test_common_prefix():
    assert common_prefix(["module._orig_mod.a", "module._orig_mod.b.c"]) == "module._orig_mod."
    assert common_prefix(["module.a", "b"]) == ""
    assert common_prefix(["module."]) == ""
    assert common_prefix([]) == ""
