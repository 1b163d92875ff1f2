"""One checkpoint of another framework: named tensors that are read when asked for, and facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lawa_jax.errors import TreeMismatchError
from lawa_jax.trajectory.formats import facts
from lawa_jax.tree import LeafSpec

# Where training scripts keep the model inside a saved dict, the usual ones first.
WRAPPER_KEYS = (
    "state_dict",
    "model",
    "params",
    "model_state_dict",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
    "module",
    "net",
    "network_weights",
)
_EMA_KEYS = frozenset(key for key in WRAPPER_KEYS if "ema" in key.split("_"))
_OPTIMIZER_KEYS = frozenset(
    {"opt_state", "opt_states", "optimizer", "optimizer_state", "optim", "opt"}
)
_DEEPEST = 12


@dataclass(frozen=True)
class StateDict:
    """The model tensors of one file (or directory of shards); nothing bulky is read yet.

    Attributes:
      path: the file or directory.
      specs: shape and dtype by name, in the file's order.
      read: an array by name; may be a view of mapped memory, so do not write to it.
      shared: names whose tensor is the very one of an earlier name (tied weights).
      wrapper: the keys that led to the tensors: ``("state_dict",)``; () if they lay bare.
      objects: entries of the state dict that are plain numbers or strings.
      skipped: entries that are neither tensors nor plain; named in the report.
      left_out: what else of the file holds tensors, and how many.
      nested: keys of the tensors that lie in dicts inside the state dict; joined by dots they are
        the tensor's name.
      facts: what else the file told: ``epoch``, ``step``, ``arch``, ``heads``, metrics.
    """

    path: Path
    specs: Mapping[str, LeafSpec]
    read: Callable[[str], np.ndarray]
    shared: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)


class FoundTensors(NamedTuple):
    """The state dict of a loaded file; see `StateDict` for the fields."""

    entries: dict[str, Any]
    wrapper: tuple[str, ...]
    nested: dict[str, tuple[str, ...]]
    left_out: dict[str, int]


def find_tensors(
    content: Any, is_tensor: Callable[[Any], bool], label: str, wanted: str | None = None
) -> FoundTensors:
    """The state dict of a loaded file, and the keys that lead there.

    Dicts of tensors inside the state dict belong to it. An optimizer's state does not, and neither
    does a running average; they are counted, as is everything beside the state dict.

    Args:
      content: what the file held.
      is_tensor: tells tensors from everything else.
      label: the file, for messages.
      wanted: a wrapper key (``ema``) or a dotted path of them; by default the first of
        `WRAPPER_KEYS` that holds tensors.

    Raises:
      TreeMismatchError: there are none; lists the keys that were found instead.
    """
    whole = content
    path: tuple[str, ...] = ()
    if wanted is not None:
        content, path = _at(content, wanted, label)
    for depth in range(4):
        if not isinstance(content, Mapping):
            break
        # A state dict may have a branch called "module"; it has tensors of its own, then.
        if (depth or wanted is not None) and any(map(is_tensor, content.values())):
            break
        inner = next((k for k in WRAPPER_KEYS if _holds(content.get(k), is_tensor)), None)
        # A bare state dict may have a module called "model"; its keys are dotted, then.
        if inner is None:
            break
        content, path = content[inner], (*path, inner)
    found = FoundTensors({}, path, {}, {})
    if not isinstance(content, Mapping) or not _belongs(content, is_tensor, path):
        raise TreeMismatchError(_nothing(whole, content, is_tensor, label))
    _flatten(content, (), found, is_tensor, label)
    _count_rest(whole, path, found.left_out, is_tensor)
    return found


def _at(content: Any, wanted: str, label: str) -> tuple[Any, tuple[str, ...]]:
    path: tuple[str, ...] = ()
    for key in wanted.split("."):
        if not isinstance(content, Mapping) or key not in content:
            raise TreeMismatchError(
                f"{label}: no {wanted!r} in it; found {_keys(content)}; choose with --wrapper"
            )
        content, path = content[key], (*path, key)
    return content, path


def _belongs(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool], path: Any) -> bool:
    """Whether it is a state dict: tensors in it, or, under a wrapper, in dicts inside it."""
    return any(map(is_tensor, content.values())) or (bool(path) and _holds(content, is_tensor))


def _flatten(
    content: Mapping[Any, Any],
    above: tuple[str, ...],
    found: FoundTensors,
    is_tensor: Callable[[Any], bool],
    label: str,
) -> None:
    for key, value in content.items():
        keys = (*above, str(key))
        name = ".".join(keys)
        inside = 0 if is_tensor(value) else _count(value, is_tensor)
        if inside and isinstance(value, Mapping) and not _is_apart(str(key), value):
            _flatten(value, keys, found, is_tensor, label)
        elif inside:
            found.left_out[".".join((*found.wrapper, *keys))] = inside
        elif is_tensor(value) or not above:
            if name in found.entries:
                raise TreeMismatchError(
                    f"{label}: {name!r} is there twice, with and without an inner dict; choose one "
                    "with --wrapper"
                )
            found.entries[name] = value
            if above:
                found.nested[name] = keys


def _is_apart(key: str, value: Mapping[Any, Any]) -> bool:
    optimizer = key.lower() in _OPTIMIZER_KEYS or {"state", "param_groups"} <= value.keys()
    return optimizer or key.lower() in _EMA_KEYS


def _count(content: Any, is_tensor: Callable[[Any], bool], depth: int = 0) -> int:
    if is_tensor(content):
        return 1
    if depth == _DEEPEST or not isinstance(content, Mapping | list | tuple | set):
        return 0
    inner = content.values() if isinstance(content, Mapping) else content
    return sum(_count(value, is_tensor, depth + 1) for value in inner)


def _holds(content: Any, is_tensor: Callable[[Any], bool]) -> bool:
    return isinstance(content, Mapping) and _count(content, is_tensor) > 0


def _count_rest(
    content: Any, path: tuple[str, ...], counts: dict[str, int], is_tensor: Callable[[Any], bool]
) -> None:
    """Tensors beside the state dict, by the key that holds them."""
    for depth, chosen in enumerate(path):
        for key, value in content.items():
            number = _count(value, is_tensor)
            if key != chosen and number and not (is_tensor(value) and key in facts.NAMES):
                counts[".".join((*path[:depth], str(key)))] = number
        content = content[chosen]


def told_left_out(counts: Mapping[str, int]) -> str:
    """``classifier (2 tensors), model_ema (161 tensors)``."""
    plural = {True: "tensor", False: "tensors"}
    return ", ".join(f"{key} ({number} {plural[number == 1]})" for key, number in counts.items())


def _nothing(whole: Any, content: Any, is_tensor: Callable[[Any], bool], label: str) -> str:
    if isinstance(whole, Mapping) and "_modules" in whole:
        return (
            f"{label}: it holds a whole pickled module, not a state dict; save model.state_dict() "
            "where you trust the file"
        )
    if isinstance(content, Mapping):
        groups = {str(k): _count(v, is_tensor) for k, v in content.items() if _count(v, is_tensor)}
        if groups:
            first = next((k for k in groups if "optim" not in k.lower()), next(iter(groups)))
            return (
                f"{label}: which of {told_left_out(groups)} is the model? Say --wrapper {first}, "
                f"for instance"
            )
    return (
        f"{label}: expected a dict of tensors, bare or under {', '.join(WRAPPER_KEYS[:4])}, ...; "
        f"found {_keys(content)}; name the key that holds the model with --wrapper"
    )


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    names = [str(key) for key in content]
    return f"the keys {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")
