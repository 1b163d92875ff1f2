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
        # Keras: trainable and other variables; optimizer and metrics are a trainer's.
        (
            "trainable_variables/d/kernel non_trainable_variables/bn/moving_mean "
            "optimizer_variables/adam/d_kernel_velocity metrics_variables/loss/total",
            "trainable_variables/d/kernel non_trainable_variables/bn/moving_mean",
        ),
        # A tuple (params, optax state, step), whose moments repeat the parameters.
        ("0/dense/kernel 1/mu/dense/kernel 1/nu/dense/kernel 1/count 2", "0/dense/kernel"),
        ("0/dense/kernel 1/0/trace/dense/kernel 2", "0/dense/kernel"),
        ("net/a/w net/a/b inner/adam/m/a/w inner/adam/m/a/b inner/adam/t", "net/a/w net/a/b"),
        # A layer called "m" or "v" is none of moments: nothing repeats it.
        ("a/m/w a/v/w b/w", "a/m/w a/v/w b/w"),
        # Haiku keeps BatchNorm beside the parameters, in "state".
        (
            "params/linear/w state/bn/~/mean_ema/average state/bn/~/mean_ema/counter opt_state/mu",
            "params/linear/w state/bn/~/mean_ema/average state/bn/~/mean_ema/counter",
        ),
        # Layers in a row repeat each other; so do two leaves of each of several layers.
        ("block_0/a/w block_0/b/w block_11/a/w block_11/b/w", None),
        ("conv/kernel dense/kernel", None),
        ("0/kernel 0/bias 1/kernel 1/bias", None),
        ("target_optimizer/x/w online/w", "online/w"),
    ],
)
def test_default_selection(stored, chosen):
    chosen = stored if chosen is None else chosen
    selection = default_selection(leaves(stored))
    assert selection.names == tuple(chosen.split())
    assert set(selection.names) | set(selection.left_out) == set(stored.split())


@pytest.mark.parametrize(
    "stored",
    [
        # A network and its copy, whichever is which.
        "online/a/w online/a/b target/a/w target/a/b",
        "generator/up/w generator/down/w smoothed/up/w smoothed/down/w",
        # Unknown branches beside a counter.
        "weights_/w slots/w step",
        # A tuple of different things.
        "0/a/w 1/x 2/b/c 3",
    ],
)
def test_what_may_hold_a_trainers_state_is_a_question(stored):
    with pytest.raises(SelectionError, match=r"R@3: which leaves are the model .*--include '\*'"):
        select(leaves(stored), label="R@3")
    assert select(leaves(stored), include=["*"], label="R").names == tuple(stored.split())
    first = stored.split("/")[0]
    with pytest.raises(SelectionError, match=f"{first}: [0-9] leaves, --include '{first}'"):
        select(leaves(stored), label="R@3")


def test_what_was_chosen_is_said_by_branches():
    tree = leaves("params/a/w params/b/w opt_state/mu/a opt_state/mu/b step")
    assert select(tree, label="R").sentence() == (
        "chosen: params (2 leaves); left out: opt_state (2 leaves), step"
    )
    assert select(leaves("w"), label="R").sentence() == "chosen: w"


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
