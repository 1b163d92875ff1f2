"""Latest Weight Averaging for JAX: average the latest checkpoints of any Orbax trajectory.

The public interface is what is listed here:

    average              the weighted average of pytrees in memory, jitted
    Accumulator          the same average, given one tree at a time
    average_checkpoints  the average of the latest k checkpoints of a run, read from disk
    coefficients         module: the coefficients of every averaging method
    recalibrate          recompute the BatchNorm statistics of averaged weights
    recalibrate_torch    the same, as torch.optim.swa_utils.update_bn computes them
    latest_weight_averaging, exponential_average, power_average, bias_corrected_average
                         optax transformations that average inside the training loop
    averaged_params      the average that such a transformation holds
    restart_from_average continue training from that average
    greedy_soup, best_k, best_window, learn_coefficients
                         find on held-out data which checkpoints to average, or with what weights
    posthoc_ema_weights  the weights that combine snapshots of power-function EMAs into another EMA
    models               package: ResNet and RoBERTa in Flax NNX
    errors               module: the exceptions that all of these raise
    __version__          the version of the installed package

Everything else is internal and may change without notice.

Names are loaded when they are first used, so that listing checkpoints does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lawa_jax import errors, models
    from lawa_jax.averaging import coefficients
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

    __version__: str

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
_MODULES = {"coefficients": "averaging.coefficients", "errors": "errors", "models": "models"}

__all__ = [
    "Accumulator",
    "__version__",
    "average",
    "average_checkpoints",
    "averaged_params",
    "best_k",
    "best_window",
    "bias_corrected_average",
    "coefficients",
    "errors",
    "exponential_average",
    "greedy_soup",
    "latest_weight_averaging",
    "learn_coefficients",
    "models",
    "posthoc_ema_weights",
    "power_average",
    "recalibrate",
    "recalibrate_torch",
    "restart_from_average",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("lawa-jax")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
