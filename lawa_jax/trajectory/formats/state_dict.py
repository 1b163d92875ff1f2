"""One checkpoint of another framework: named tensors that are read when asked for, and facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.errors import TreeMismatchError
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
)


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
      facts: what else the file told: ``epoch``, ``step``, ``arch``, ``heads``, metrics.
    """

    path: Path
    specs: Mapping[str, LeafSpec]
    read: Callable[[str], np.ndarray]
    shared: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)


def find_tensors(
    content: Any, is_tensor: Callable[[Any], bool], label: str, wanted: str | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The innermost dict of tensors of a loaded file, and the keys that lead there.

    Args:
      content: what the file held.
      is_tensor: tells tensors from everything else.
      label: the file, for messages.
      wanted: a wrapper key (``ema``) or a dotted path of them; by default the first of
        `WRAPPER_KEYS` that holds tensors.

    Raises:
      TreeMismatchError: there are none; lists the keys that were found instead.
    """
    path: tuple[str, ...] = ()
    if wanted is not None:
        for key in wanted.split("."):
            if not isinstance(content, Mapping) or key not in content:
                raise TreeMismatchError(
                    f"{label}: no {wanted!r} in it; found {_keys(content)}; choose with --wrapper"
                )
            content, path = content[key], (*path, key)
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = next(
            (
                key
                for key in WRAPPER_KEYS
                if isinstance(content.get(key), Mapping) and _holds(content[key], is_tensor)
            ),
            None,
        )
        # A bare state dict may have a module called "model"; its keys are dotted, then.
        if inner is None:
            break
        content, path = content[inner], (*path, inner)
    if isinstance(content, Mapping) and any(is_tensor(value) for value in content.values()):
        return {str(key): value for key, value in content.items()}, path
    raise TreeMismatchError(
        f"{label}: expected a dict of tensors, bare or under {', '.join(WRAPPER_KEYS[:4])}, ...; "
        f"found {_keys(content)}; name the key that holds the model with --wrapper"
    )


def _holds(content: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> bool:
    if any(is_tensor(value) for value in content.values()):
        return True
    return any(
        isinstance(content.get(key), Mapping)
        and any(is_tensor(value) for value in content[key].values())
        for key in WRAPPER_KEYS
    )


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    names = [str(key) for key in content]
    return f"the keys {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")
