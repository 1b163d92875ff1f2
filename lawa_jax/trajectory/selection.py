"""Which leaves of a stored tree are the model: told by names, or by the user's patterns."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lawa_jax.errors import SelectionError

# Names under which training code keeps what an optimizer remembers.
OPTIMIZER_KEYS = frozenset(
    {"opt_state", "opt_states", "optimizer", "optimizer_state", "optim", "opt", "tx", "tx_state"}
)
# Below "params" are the parameters, wherever it stands. The other names may as well be those of a
# layer, so they count only at the top, beside nothing but what a trainer keeps.
PARAMETERS = "params"
MODEL_KEYS = ("model", "parameters", "variables", "weights", "module", "net", "state_dict")
TRAINER_KEYS = frozenset(
    {"step", "steps", "global_step", "iteration", "epoch", "rng", "rngs", "key", "seed", "lr"}
    | {"learning_rate", "schedule", "scheduler", "loss_scale", "dynamic_scale", "metrics", "config"}
    | {"ema", "ema_params", "ema_state", "ema_model", "best", "dataset", "data_iter", "meta"}
)
STATISTICS_KEYS = frozenset({"batch_stats", "model_state", "extra_vars", "mutable", "buffers"})

Keys = tuple[str, ...]


class Selection(NamedTuple):
    """Leaves that were chosen, and why."""

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    reason: str


def _is_optimizer(keys: Keys) -> bool:
    return any(key.lower() in OPTIMIZER_KEYS for key in keys)


def _is_statistics(keys: Keys) -> bool:
    return any(key in STATISTICS_KEYS for key in keys)


def _parameter_branch(leaves: Mapping[str, Keys]) -> tuple[str, int] | None:
    """Name and depth of the branch that holds the parameters, if names tell."""
    depths = [keys.index(PARAMETERS) for keys in leaves.values() if PARAMETERS in keys[:-1]]
    if depths:
        return PARAMETERS, min(depths)
    top = {keys[0] for keys in leaves.values() if keys}
    branches = {keys[0] for keys in leaves.values() if len(keys) > 1}
    for name in MODEL_KEYS:
        rest = {key.lower() for key in top - {name}}
        if name in branches and rest <= TRAINER_KEYS | STATISTICS_KEYS and rest:
            return name, 0
    return None


def default_selection(leaves: Mapping[str, Keys]) -> Selection:
    """The parameters and batch statistics of a stored tree, by the names in it.

    Optimizer state is never chosen. Of the rest, the shallowest branch called ``params`` and the
    batch statistics; or a branch ``model`` (``variables``, ...) at the top, if all beside it is a
    trainer's (``step``, ``rng``, ...); or else everything.

    Args:
      leaves: keys of each leaf by its name.

    Example:
      >>> tree = {"params/w": ("params", "w"), "opt_state/0/mu/w": ("opt_state", "0", "mu", "w")}
      >>> default_selection(tree).names
      ('params/w',)
    """
    chosen = {name: keys for name, keys in leaves.items() if not _is_optimizer(keys)}
    dropped = len(leaves) - len(chosen)
    why = f"all but {dropped} leaves of optimizer state" if dropped else "all leaves"
    branch = _parameter_branch(chosen)
    if branch is not None:
        wanted, depth = branch
        chosen = {
            name: keys
            for name, keys in chosen.items()
            if (len(keys) > depth + 1 and keys[depth] == wanted) or _is_statistics(keys)
        }
        kept = sorted({"/".join(keys[: depth + 1]) for keys in chosen.values()})
        why = "parameters and statistics by name: " + ", ".join(kept)
    return Selection(tuple(chosen), tuple(n for n in leaves if n not in chosen), why)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern (``params/*/kernel``; ``*`` also spans ``/``) names a leaf or a branch."""
    branch = pattern.rstrip("/") + "/"
    return (
        fnmatch.fnmatchcase(name, pattern)
        or name.startswith(branch)
        or fnmatch.fnmatchcase(name, branch + "*")
    )


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
