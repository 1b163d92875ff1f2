"""What a checkpoint tells about itself besides its weights: epoch, architecture, metrics."""

import math
from collections.abc import Mapping
from typing import Any

# Figure in the file -> metric in the run.
_METRICS = {
    "best_acc1": "val/top1_best",
    "best_prec1": "val/top1_best",
    "best_acc": "val/top1_best",
    "val_loss": "val/loss",
    "best": "val/loss_best",
}
# A tensor of one of these names is a figure, no weight.
NAMES = frozenset({*_METRICS, "epoch", "global_step", "step", "num_updates", "iteration"})

# What a trainer's configuration says of the network, and of how it was evaluated.
_SETTINGS = (
    *("activation_fn", "layernorm_embedding", "no_scale_embedding", "encoder_learned_pos"),
    *("seed", "tokens_per_sample", "sample_break_mode", "mask_prob", "leave_unmasked_prob"),
    *("random_token_prob", "freq_weighted_replacement", "mask_whole_words"),
    *("mask_multiple_length", "mask_stdev", "shorten_method"),
)


def number(value: Any) -> float | None:
    """A Python number from a number or a one-element tensor or array; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        if not isinstance(value, int | float):
            size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
            if size != 1:
                return None
            value = value.item()
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    except (TypeError, ValueError, OverflowError, RuntimeError, AttributeError):
        return None


def collect(content: Any) -> dict[str, Any]:
    """Facts of a loaded checkpoint; {} if it is a bare state dict.

    Returns:
      ``epoch`` and ``step`` (int), ``completed`` (False if ``epoch`` is the one that fairseq will
      start next), ``updates_in_epoch`` (batches that fairseq has done of ``epoch``, if any; old
      versions count the whole epoch at its end), ``arch`` (str), ``heads`` (int), ``settings``
      (values of `_SETTINGS` in fairseq's configuration) and ``metrics`` (numbers by name), each
      only where found.
    """
    if not isinstance(content, Mapping):
        return {}
    facts: dict[str, Any] = {}
    for key, names in (
        ("epoch", ("epoch",)),
        ("step", ("global_step", "global_steps", "step", "num_updates", "iteration")),
    ):
        for name in names:
            value = number(content.get(name))
            if value is not None and value == int(value):
                facts.setdefault(key, int(value))
    meta = content.get("meta")  # OpenMMLab
    if isinstance(meta, Mapping):
        for key, name in (("epoch", "epoch"), ("step", "iter")):
            value = number(meta.get(name))
            if value is not None:
                facts.setdefault(key, int(value))
    if "network_weights" in content and number(content.get("current_epoch")) is not None:
        # nnU-Net states the epoch to do next.
        facts |= {"epoch": int(content["current_epoch"]), "completed": False}
    history = content.get("optimizer_history")  # fairseq
    if isinstance(history, list) and history and isinstance(history[-1], Mapping):
        updates = number(history[-1].get("num_updates"))
        if updates is not None:
            facts.setdefault("step", int(updates))
    if isinstance(content.get("arch"), str):
        facts["arch"] = content["arch"]
    extra = content.get("extra_state")
    extra = extra if isinstance(extra, Mapping) else {}
    iterator = extra.get("train_iterator")
    if isinstance(iterator, Mapping) and isinstance(iterator.get("epoch"), int):
        facts["epoch"] = iterator["epoch"]
        done = iterator.get("iterations_in_epoch")
        facts["completed"] = done != 0
        if done:
            facts["updates_in_epoch"] = done
    configurations = (content.get("args"), content.get("cfg"))
    heads = [v for c in configurations if isinstance(v := _find(c, "encoder_attention_heads"), int)]
    if heads:
        facts["heads"] = heads[0]
    settings = {n: v for n in _SETTINGS for c in configurations if (v := _find(c, n)) is not None}
    if settings:
        facts["settings"] = settings
    metrics = {}
    for source in (content, extra):
        for name, metric in _METRICS.items():
            value = number(source.get(name))
            if value is not None:
                metrics[metric] = float(value)
    if metrics:
        facts["metrics"] = metrics
    return facts


def _find(content: Any, key: str, depth: int = 6) -> int | float | str | None:
    """A setting anywhere in nested configuration; OmegaConf wraps values in ``_val``."""
    if depth == 0 or not isinstance(content, Mapping):
        return None
    value = content.get(key)
    if isinstance(value, Mapping):
        value = value.get("_val")
    # "${common.seed}" refers to another place.
    reference = isinstance(value, str) and value.startswith("${")
    if isinstance(value, int | float | str) and not reference:
        return value
    for inner in content.values():
        found = _find(inner, key, depth - 1)
        if found is not None:
            return found
    return None
