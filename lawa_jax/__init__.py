"""Latest Weight Averaging for JAX: average the latest checkpoints of any Orbax trajectory.

    average              pytrees in memory, jitted
    Accumulator          the same, one tree at a time
    average_checkpoints  the latest k checkpoints of a run, from disk
    recalibrate          BatchNorm statistics for averaged weights

Names are loaded when first used, so that listing checkpoints need not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lawa_jax.averaging import Accumulator, average
    from lawa_jax.batch_norm import recalibrate, recalibrate_torch
    from lawa_jax.trajectory import average_checkpoints

_HOMES = {
    "Accumulator": "averaging",
    "average": "averaging",
    "average_checkpoints": "trajectory",
    "recalibrate": "batch_norm",
    "recalibrate_torch": "batch_norm",
}

__all__ = ["Accumulator", "average", "average_checkpoints", "recalibrate", "recalibrate_torch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
