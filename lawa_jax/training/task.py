"""What the loop needs to know of a problem: the seam between the trainers and their one loop."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from lawa_jax.data import Batch
from lawa_jax.models.functional import Model
from lawa_jax.training.mesh import Placement
from lawa_jax.training.metrics import MetricSums
from lawa_jax.training.steps import TrainState


class Task(NamedTuple):
    """A model, its data and its steps.

    Attributes:
      unit: what progress and logs count (``"images"``).
      seed: of initialisation, data order and dropout.
      init: fresh train state ``{"model": {...}, "opt_state": ...}``.
      train_step: ``(state, batch, learning_rate, key) -> (state, metrics)``, jitted; donates state.
      eval_step: ``(model, batch) -> metrics``, jitted.
      learning_rate: of the number of updates done.
      train_batches: ``(epoch, start)``: host batches of an epoch (from 1) after `start` samples.
      eval_batches: host batches of a split: ``"val"``, and what else the data have of ``"train"``
        and ``"test"``.
      recalibrate: ``(model, end) -> model`` with statistics recomputed on training batches that
        depend on the seed and `end` alone; None for models without BatchNorm.
      batch_size: samples an update sees, over all devices and processes.
      samples_per_epoch: a multiple of `batch_size`.
      place: puts arrays on devices.
      units_per_sample: how many of `unit` a sample is, on average.
      moments: ``(model, batch) -> moments``, jitted, that `recalibrate` pools; None without.
      recalibrated_on: what `recalibrate` averages over, for the log.
      derived: further metrics from the means of an evaluation.
    """

    unit: str
    seed: int
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch, Any, jax.Array], tuple[TrainState, MetricSums]]
    eval_step: Callable[[Model, Batch], MetricSums]
    learning_rate: Callable[[int], float]
    train_batches: Callable[[int, int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    recalibrate: Callable[[Model, int], Model] | None
    batch_size: int
    samples_per_epoch: int
    place: Placement
    units_per_sample: float = 1.0
    moments: Callable[[Model, Batch], Any] | None = None
    recalibrated_on: Mapping[str, int] = MappingProxyType({})
    derived: Callable[[dict[str, float]], dict[str, float]] = lambda means: {}
