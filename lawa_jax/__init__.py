"""Latest Weight Averaging for JAX: average the latest checkpoints of any Orbax trajectory.

    average              pytrees in memory, jitted
    Accumulator          the same, one tree at a time
    average_checkpoints  the latest k checkpoints of a run, from disk
    recalibrate          BatchNorm statistics for averaged weights
    latest_weight_averaging, exponential_average, power_average, bias_corrected_average
                         optax transformations that average inside the training loop
    averaged_params      the average that they hold
    restart_from_average go on training from it
    greedy_soup, best_k, best_window, learn_coefficients
                         which checkpoints, and with what weights, found on held-out data
    posthoc_ema_weights  of snapshots of power-function EMAs, to make one of another width

Names are loaded when first used, so that listing checkpoints need not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lawa_jax.averaging.batch_norm import recalibrate, recalibrate_torch
    from lawa_jax.averaging.device import Accumulator, average
    from lawa_jax.averaging.posthoc_ema import posthoc_ema_weights
    from lawa_jax.offline.prepare import average_checkpoints
    from lawa_jax.online import (
        averaged_params,
        bias_corrected_average,
        exponential_average,
        latest_weight_averaging,
        power_average,
        restart_from_average,
    )
    from lawa_jax.search.learned import learn_coefficients
    from lawa_jax.search.soups import best_k, best_window, greedy_soup

_HOMES = {
    "Accumulator": "averaging.device",
    "average": "averaging.device",
    "average_checkpoints": "offline.prepare",
    "averaged_params": "online",
    "best_k": "search.soups",
    "best_window": "search.soups",
    "bias_corrected_average": "online",
    "exponential_average": "online",
    "greedy_soup": "search.soups",
    "latest_weight_averaging": "online",
    "learn_coefficients": "search.learned",
    "posthoc_ema_weights": "averaging.posthoc_ema",
    "power_average": "online",
    "restart_from_average": "online",
    "recalibrate": "averaging.batch_norm",
    "recalibrate_torch": "averaging.batch_norm",
}

__all__ = [
    "Accumulator",
    "average",
    "average_checkpoints",
    "averaged_params",
    "best_k",
    "best_window",
    "bias_corrected_average",
    "exponential_average",
    "greedy_soup",
    "latest_weight_averaging",
    "learn_coefficients",
    "posthoc_ema_weights",
    "power_average",
    "recalibrate",
    "recalibrate_torch",
    "restart_from_average",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
