"""Which leaves of a stored tree are the model: told by names, or by the user's patterns."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lawa_jax.errors import SelectionError

# Names under which training code keeps what an optimizer remembers.
OPTIMIZER_KEYS = frozenset(
    {"opt_state", "opt_states", "optimizer", "optimizer_state", "optim", "opt", "tx", "tx_state"}
)
PARAMETER_KEYS = ("params", "model", "parameters", "variables", "weights")
STATISTICS_KEYS = frozenset({"batch_stats", "model_state", "extra_vars", "mutable", "buffers"})

Keys = tuple[str, ...]


class Selection(NamedTuple):
    """Leaves that were chosen, and why."""

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    reason: str


def _under_optimizer(keys: Keys) -> bool:
    return any(key.lower() in OPTIMIZER_KEYS for key in keys)


def default_selection(leaves: Mapping[str, Keys]) -> Selection:
    """The parameters and batch statistics of a stored tree, by the names in it.

    Optimizer state is never chosen. Of the rest, if some branch is called ``params`` (or
    ``model``, ...), the shallowest such branch and the batch statistics; else everything.

    Args:
      leaves: keys of each leaf by its name.
    """
    rest = {name: keys for name, keys in leaves.items() if not _under_optimizer(keys)}
    dropped = len(leaves) - len(rest)
    why = f"all but {dropped} leaves of optimizer state" if dropped else "all leaves"
    chosen = rest
    for wanted in PARAMETER_KEYS:
        depths = [keys.index(wanted) for keys in rest.values() if wanted in keys[:-1]]
        if depths:
            depth = min(depths)
            chosen = {
                name: keys
                for name, keys in rest.items()
                if (len(keys) > depth + 1 and keys[depth] == wanted)
                or any(key in STATISTICS_KEYS for key in keys)
            }
            kept = sorted({"/".join(keys[: depth + 1]) for keys in chosen.values()})
            why = "parameters and statistics by name: " + ", ".join(kept)
            break
    names = tuple(chosen)
    return Selection(names, tuple(n for n in leaves if n not in chosen), why)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern (``params/*/kernel``; ``*`` also spans ``/``) or a branch names a leaf."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern.rstrip("/") + "/")


def _check_used(patterns: Iterable[str], names: Iterable[str], label: str) -> None:
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise SelectionError(f"{label}: no leaf matches {pattern!r}; there are {some}")


def select(
    leaves: Mapping[str, Keys],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    label: str,
) -> Selection:
    """Leaves by patterns; without `include`, the `default_selection`.

    Raises:
      SelectionError: a pattern matches nothing, or nothing is left.
    """
    include, exclude = tuple(include), tuple(exclude)
    _check_used(include, leaves, label)
    _check_used(exclude, leaves, label)
    selection = default_selection(leaves)
    if include:
        names = tuple(n for n in leaves if any(matches(n, p) for p in include))
        selection = Selection(names, (), "included: " + ", ".join(include))
    names = tuple(n for n in selection.names if not any(matches(n, p) for p in exclude))
    reason = selection.reason + (f"; excluded: {', '.join(exclude)}" if exclude else "")
    if leaves and not names:
        raise SelectionError(f"{label}: no leaf is left ({reason}); name some with --include")
    kept = set(names)
    return Selection(names, tuple(n for n in leaves if n not in kept), reason)
