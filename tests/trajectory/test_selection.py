"""Parameters are told by names, and nothing of a model is left out by a guess."""

import pytest

from lawa_jax.errors import SelectionError
from lawa_jax.trajectory.selection import default_selection, matches, select


def leaves(text):
    return {name: tuple(name.split("/")) for name in text.split()}


@pytest.mark.parametrize(
    ("stored", "chosen"),
    [
        # A Linen TrainState, and one inside another tree.
        ("params/w opt_state/0/mu/w step", "params/w"),
        ("state/params/w state/opt_state/0/mu/params/w state/step", "state/params/w"),
        ("params/w batch_stats/m ema_params/w rng", "params/w batch_stats/m"),
        # Variables of a model, and a bare parameter tree.
        ("params/w batch_stats/m", "params/w batch_stats/m"),
        ("dense/kernel dense/bias", "dense/kernel dense/bias"),
        # NNX: a model beside its optimizer and counters; a model alone.
        ("model/w model/bn/mean optimizer/opt_state/w step", "model/w model/bn/mean"),
        ("layers/0/kernel layers/10/kernel", "layers/0/kernel layers/10/kernel"),
        # Layers that are called "model" or "weights" hide no others.
        ("embed/w model/w head/w", "embed/w model/w head/w"),
        ("model/w", "model/w"),
        ("a/weights/w a/b", "a/weights/w a/b"),
        # A leaf called "params" is a leaf.
        ("params other", "params other"),
    ],
)
def test_default_selection(stored, chosen):
    selection = default_selection(leaves(stored))
    assert selection.names == tuple(chosen.split())
    assert set(selection.names) | set(selection.left_out) == set(stored.split())


def test_the_reason_is_told():
    assert default_selection(leaves("w opt_state/mu")).reason == (
        "all but 1 leaves of optimizer state"
    )
    assert default_selection(leaves("w")).reason == "all leaves"
    assert default_selection(leaves("a/params/w a/step")).reason == (
        "parameters and statistics by name: a/params"
    )


def test_patterns():
    assert matches("params/a/kernel", "params/*/kernel")
    assert matches("params/a/b/kernel", "params/*/kernel")
    assert matches("params/a", "params")
    assert matches("params/a", "params/")
    assert not matches("params2/a", "params")
    assert not matches("Params/a", "params/*")


def test_include_and_exclude():
    tree = leaves("params/a/w params/b/w opt_state/mu step")
    assert select(tree, include=["opt_state", "step"], label="R").names == ("opt_state/mu", "step")
    assert select(tree, exclude=["*/b/*"], label="R").names == ("params/a/w",)
    both = select(tree, include=["params"], exclude=["params/b"], label="R")
    assert both.names == ("params/a/w",)
    assert both.left_out == ("params/b/w", "opt_state/mu", "step")
    assert both.reason == "included: params; excluded: params/b"
    with pytest.raises(SelectionError, match=r"R@3: no leaf matches 'x'; there are params/a/w, "):
        select(tree, include=["x"], label="R@3")
