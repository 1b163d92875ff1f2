"""Which leaves are BatchNorm statistics, and what can happen to them when weights are averaged."""

from collections.abc import Iterable
from typing import Literal

StatisticsPolicy = Literal["recalibrate", "average", "latest"]
"""Recomputed on training data (as the paper), averaged like weights, or the newest checkpoint's."""
POLICIES: tuple[StatisticsPolicy, ...] = ("recalibrate", "average", "latest")
StoredStatistics = Literal["latest", "average"]
"""The policies that need no model: what averaging stored checkpoints can do by itself."""

COLLECTION = "batch_stats"
"""The collection of BatchNorm statistics."""
_PAIRS = (
    ("mean", "var"),
    ("running_mean", "running_var"),
    ("moving_mean", "moving_variance"),  # Keras
)
# Haiku keeps a moving average of each below a module of its own.
_HAIKU = ("mean_ema", "var_ema")
# Names under which Orbax stores the array inside an NNX variable.
NNX_VALUE_KEYS = ("value", "raw_value")


def batch_statistics(names: Iterable[str]) -> set[str]:
    """Which of these leaf names are BatchNorm statistics, as far as names tell.

    They are: every leaf below a key ``batch_stats``; and every pair of leaves ``mean`` and ``var``,
    ``running_mean`` and ``running_var``, or ``moving_mean`` and ``moving_variance`` (Keras), of one
    parent, with or without a trailing ``value`` (states of Flax NNX as Orbax stores them); and
    every leaf below ``mean_ema`` or ``var_ema`` (Haiku).

    Example: ``{"params/bn/scale", "batch_stats/bn/mean", "model/bn/running_mean",
    "model/bn/running_var"}`` has three.
    """
    names = set(names)
    found = {name for name in names if {COLLECTION, *_HAIKU} & set(name.split("/")[:-1])}
    for name in names:
        keys = name.split("/")
        at = len(keys) - 2 if keys[-1] in NNX_VALUE_KEYS and len(keys) > 1 else len(keys) - 1
        for mean, var in _PAIRS:
            partner = {mean: var, var: mean}.get(keys[at])
            if partner and "/".join([*keys[:at], partner, *keys[at + 1 :]]) in names:
                found.add(name)
    return found
