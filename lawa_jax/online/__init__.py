"""Averaging inside the training loop: optax transformations that remember parameters.

Put one LAST in a chain, where updates are final; it leaves them alone and keeps parameters plus
updates (optax sees parameters before the update). Reading the average out is a separate, pure
function::

    optimizer = optax.chain(optax.adamw(1e-3), latest_weight_averaging(k=5, every=1000))
    ...
    params_for_evaluation = averaged_params(opt_state)

    latest_weight_averaging   ring of the latest k copies (LAWA); nothing drifts
    exponential_average       EMA of the parameters
    power_average             power-function EMA (EDM2)
    bias_corrected_average    BEMA
    averaged_params           the average that any of them holds
    restart_from_average      go on training from it
"""

from lawa_jax.online.readout import averaged_params, restart_from_average
from lawa_jax.online.ring import RingState, latest_weight_averaging
from lawa_jax.online.running import (
    CorrectedState,
    RunningState,
    bias_corrected_average,
    exponential_average,
    power_average,
)

__all__ = [
    "CorrectedState",
    "RingState",
    "RunningState",
    "averaged_params",
    "bias_corrected_average",
    "exponential_average",
    "latest_weight_averaging",
    "power_average",
    "restart_from_average",
]
