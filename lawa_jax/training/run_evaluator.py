"""Evaluating averages of a run of the shipped trainers, from the run's own JSON."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.errors import ConfigError
from lawa_jax.search.evaluators import Evaluator
from lawa_jax.training import run_directory
from lawa_jax.training.config import ImageConfig, RunConfig, from_json
from lawa_jax.training.image_task import image_task, load_images
from lawa_jax.training.lawa import evaluate
from lawa_jax.training.mesh import Placement
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import load_text, text_task


def run_evaluator(
    run: epath.PathLike,
    *,
    splits: Sequence[str] = ("val",),
    bn: StatisticsPolicy | None = None,
    changes: Mapping[str, str] | None = None,
) -> tuple[Evaluator, StatisticsPolicy]:
    """An evaluator for the averages of a ResNet or RoBERTa run.

    Metrics are named ``<split>/<metric>`` and are those of ``--evaluate`` of the scripts. Under
    "recalibrate" the statistics of averages are recomputed; a raw checkpoint keeps its own.

    Args:
      run: the run directory, trained or converted.
      splits: parts of the data, of train, val and test.
      bn: what averages do with BatchNorm statistics; as the run by default. Statistics are expected
        to be averaged where they are to be recomputed.
      changes: fields of the configuration with other values: ``{"data_dir": "..."}``.

    Returns:
      The evaluator, and the policy it is for.

    Raises:
      CheckpointNotFoundError, CorruptCheckpointError: there is no such run.
      ConfigError: a run of something else, or unknown fields or values.
    """
    config = run_config(epath.Path(run), changes or {})
    task, policy = _task_of(config, splits, bn)

    def score(tree: dict[str, Any], steps: tuple[int, ...]) -> dict[str, float]:
        model = task.place.state(tree)
        if policy == "recalibrate" and task.recalibrate is not None and len(steps) > 1:
            model = task.recalibrate(model, steps[-1])
        return {
            f"{split}/{name}": value
            for split in splits
            for name, value in evaluate(task, model, split).items()
        }

    settings = json.dumps([dataclasses.asdict(config), list(splits), policy], sort_keys=True)
    kind = "ResNet" if isinstance(config, ImageConfig) else "RoBERTa"
    identity = hashlib.sha256(settings.encode()).hexdigest()
    return Evaluator(f"{kind} on {', '.join(splits)}", identity, score), policy


def run_config(run: epath.Path, changes: Mapping[str, str]) -> ImageConfig | TextConfig:
    """The configuration of a trained run; of a converted one, defaults with its architecture."""
    stored = run_directory.read_config(run)
    fields = stored.get("model", {}) if "source" in stored else stored
    kinds: tuple[type[ImageConfig], type[TextConfig]] = (ImageConfig, TextConfig)
    kind = next(
        (k for k, name in zip(kinds, ("arch", "layers"), strict=True) if name in fields), None
    )
    if kind is None:
        raise ConfigError(
            f"{run}: its {run_directory.CONFIG} is of no ResNet or RoBERTa of this package; "
            "evaluate it with --evaluator file.py:function"
        )
    known = {field.name for field in dataclasses.fields(kind)}
    if "source" in stored:
        fields = {name: value for name, value in fields.items() if name in known}
    values = {**fields, **{n: _value(kind, n, text) for n, text in changes.items()}}
    config: Any = from_json(values, kind, str(run / run_directory.CONFIG))
    config.check()
    checked: ImageConfig | TextConfig = config
    return checked


def _value(kind: type[RunConfig], name: str, text: str) -> Any:
    default = getattr(kind(), name, "")
    if isinstance(default, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise ConfigError(f"--set {name}={text}: expected {type(default).__name__}") from None


def _task_of(
    config: ImageConfig | TextConfig, splits: Sequence[str], bn: StatisticsPolicy | None
) -> tuple[Task, StatisticsPolicy]:
    if isinstance(config, ImageConfig):
        return image_task(config, load_images(config), Placement()), bn or config.bn
    data = load_text(config, splits)
    config = dataclasses.replace(config, vocab_size=config.vocab_size or len(data.dictionary))
    return text_task(config, data, Placement(fsdp=config.fsdp)), bn or "average"
