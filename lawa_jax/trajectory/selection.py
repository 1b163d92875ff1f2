"""Which leaves of a stored tree are the model: told by structure, or by the user's patterns.

Without patterns, four rules apply, in this order:

1. Trainer state is left out, at any depth: branches that are named as such (``opt_state``,
   ``optimizer_variables``, ``metrics``, ...), and branches of moments, which are known by their
   structure: under ``mu``, ``nu``, ``trace`` and the like they repeat the leaves of another branch.
   What stands beside the moments (a counter) belongs to them.
2. Of the rest, the shallowest branch ``params`` is the model, with the batch statistics beside it;
   or ``trainable_variables`` with ``non_trainable_variables`` (Keras); or a branch ``model`` or
   the like, if all beside it is a trainer's.
3. Otherwise all of the rest is the model, if nothing in it may be a trainer's state: counters
   beside branches, or two branches that repeat each other (a copy, a moving average).
4. If something may be, it is a question to the user: a guess would average an optimizer.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lawa_jax.averaging.statistics import batch_statistics
from lawa_jax.errors import SelectionError

# Names under which training code keeps what an optimizer remembers.
_TRAINER = re.compile(
    r"(opt|optim|optimizers?|optimisers?)(_.*)?|.*_(optimizer|optimiser|optim|opt)(_states?)?"
    r"|tx(_state)?|metrics?(_.*)?|(lr_)?schedule[rs]?(_.*)?|(dynamic_)?loss_scale|grad_scaler"
)
# Below "params" are the parameters, wherever it stands. The other names may as well be those of a
# layer, so they count only at the top, beside nothing but what a trainer keeps.
PARAMETERS = ("params", "trainable_variables", "model_params")
MODEL_KEYS = ("model", "parameters", "variables", "weights", "module", "net", "state_dict")
TRAINER_KEYS = frozenset(
    {"step", "steps", "global_step", "iteration", "epoch", "rng", "rngs", "key", "seed", "lr"}
    | {"learning_rate", "config", "ema", "ema_params", "params_ema", "ema_state", "ema_model"}
    | {"best", "dataset", "data_iter", "meta", "count", "num_updates", "update", "timestep"}
)
STATISTICS_KEYS = frozenset(
    {"batch_stats", "model_state", "extra_vars", "mutable", "buffers", "non_trainable_variables"}
)
# Under these, moments repeat the leaves of the parameters.
_MOMENTS = frozenset(
    {"mu", "nu", "trace", "m", "v", "momentum", "momentums", "velocity", "velocities", "exp_avg"}
    | {"exp_avg_sq", "first_moment", "second_moment", "sum_of_squares", "momentum_buffer"}
)

Keys = tuple[str, ...]


class Selection(NamedTuple):
    """Leaves that were chosen, and why.

    Attributes:
      names: of the chosen leaves.
      left_out: of the others.
      reason: the rule or patterns that chose.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    reason: str

    def sentence(self) -> str:
        """What was chosen and what was left out, by branches, on one line."""
        text = f"chosen: {_branches(self.names)}"
        return f"{text}; left out: {_branches(self.left_out)}" if self.left_out else text


def _branches(names: Iterable[str]) -> str:
    counts = Counter(name.partition("/")[0] for name in names)
    shown = [
        branch if count == 1 else f"{branch} ({count} leaves)"
        for branch, count in counts.most_common(6)
    ]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def is_trainer_name(name: str) -> bool:
    """Whether a branch or item of this name is kept by a trainer, and is no model."""
    return _TRAINER.fullmatch(name.lower()) is not None


def _moments(leaves: Mapping[str, Keys]) -> set[str]:
    """Leaves of branches that hold moments, with the counters beside them."""
    below: dict[Keys, set[Keys]] = {}
    for keys in leaves.values():
        for depth in range(len(keys)):
            below.setdefault(keys[:depth], set()).add(keys[depth:])
    found: list[Keys] = []
    for branch, leaf_keys in below.items():
        key = branch[-1].lower() if branch else ""
        # "m" may be a layer, too: one leaf that is elsewhere says nothing.
        weak = len(key) == 1 and leaf_keys == {next(iter(leaf_keys))[-1:]}
        if key in _MOMENTS and not weak:
            parent = branch[:-1]
            # They are moments if the same leaves are elsewhere, outside of their own optimizer.
            if any(
                leaf_keys <= others
                for other, others in below.items()
                if other[: len(parent)] != parent or (not parent and other[:1] != branch[:1])
            ):
                found.append(parent or branch)
    return {
        name
        for name, keys in leaves.items()
        if any(keys[: len(branch)] == branch for branch in found)
    }


def _is_statistics(keys: Keys) -> bool:
    return any(key in STATISTICS_KEYS for key in keys)


def _parameter_branch(leaves: Mapping[str, Keys]) -> tuple[str, int] | None:
    """Name and depth of the branch that holds the parameters, if names tell."""
    for parameters in PARAMETERS:
        depths = [keys.index(parameters) for keys in leaves.values() if parameters in keys[:-1]]
        if depths:
            return parameters, min(depths)
    top = {keys[0] for keys in leaves.values() if keys}
    branches = {keys[0] for keys in leaves.values() if len(keys) > 1}
    for name in MODEL_KEYS:
        rest = {key.lower() for key in top - {name}}
        if name in branches and rest <= TRAINER_KEYS | STATISTICS_KEYS and rest:
            return name, 0
    return None


def default_selection(leaves: Mapping[str, Keys]) -> Selection:
    """The parameters and batch statistics of a stored tree; see the rules above.

    Args:
      leaves: keys of each leaf by its name.

    Raises:
      SelectionError: a trainer's state may be among what nobody recognises.

    Example:
      >>> tree = {"params/w": ("params", "w"), "opt_state/0/mu/w": ("opt_state", "0", "mu", "w")}
      >>> default_selection(tree).names
      ('params/w',)
    """
    moments = _moments(leaves)
    chosen = {
        name: keys
        for name, keys in leaves.items()
        if name not in moments and not any(map(is_trainer_name, keys[:-1]))
    }
    dropped = len(leaves) - len(chosen)
    why = f"all but {dropped} leaves of optimizer state" if dropped else "all leaves"
    branch = _parameter_branch(chosen)
    if branch is not None:
        wanted, depth = branch
        statistics = batch_statistics(chosen)
        chosen = {
            name: keys
            for name, keys in chosen.items()
            if (len(keys) > depth + 1 and keys[depth] == wanted)
            or _is_statistics(keys)
            or (name in statistics and keys[0].lower() not in TRAINER_KEYS)
        }
        kept = sorted({"/".join(keys[: depth + 1]) for keys in chosen.values()})
        why = "parameters and statistics by name: " + ", ".join(kept)
    else:
        chosen = _undoubted(leaves, chosen)
    return Selection(tuple(chosen), tuple(n for n in leaves if n not in chosen), why)


def _undoubted(leaves: Mapping[str, Keys], chosen: dict[str, Keys]) -> dict[str, Keys]:
    """What is left where no branch is called the parameters, if it surely is a model."""
    branches: dict[str, set[Keys]] = {}
    for keys in chosen.values():
        branches.setdefault(keys[0] if keys else "", set()).add(keys[1:])
    deep = {name for name, inner in branches.items() if any(len(keys) > 1 for keys in inner)}
    single = {name for name, inner in branches.items() if inner == {()}}
    is_sequence = all(name.isdigit() for name in branches)
    if is_sequence and len(branches) > 1 and single and len(branches) > len(single):
        # A tuple (params, state, step): numbers beside branches are a trainer's.
        chosen = {name: keys for name, keys in chosen.items() if keys[0] not in single}
        branches = {name: inner for name, inner in branches.items() if name not in single}
    counters = {name for name in single if name.lower() in TRAINER_KEYS}
    copies = [
        name
        for name in deep
        if any(
            other != name and branches[other] == branches[name] and not _are_numbered(name, other)
            for other in deep & branches.keys()
        )
    ]
    is_mixed = is_sequence and len(branches) > 1 and len({*map(frozenset, branches.values())}) > 1
    if not (copies or (counters and len(branches) > len(counters) + 1) or (is_mixed and single)):
        return {n: k for n, k in chosen.items() if not (k and k[0] in counters and len(k) == 1)}
    sizes = Counter(keys[0] if keys else "." for keys in leaves.values())
    told = "; ".join(
        f"{name}: {count} leaves, --include '{name}'" for name, count in sorted(sizes.items())
    )
    raise SelectionError(
        "which leaves are the model cannot be told, since some may be a copy of it or the state of "
        f"a trainer. Choose branches: {told}; or --include '*' for all"
    )


def _are_numbered(one: str, other: str) -> bool:
    """Whether two names are those of layers in a row: ``block_0`` and ``block_11``."""
    return re.sub("[0-9]+", "#", one) == re.sub("[0-9]+", "#", other)


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
    if include:
        names = tuple(n for n in leaves if any(matches(n, p) for p in include))
        selection = Selection(names, (), "included: " + ", ".join(include))
    else:
        try:
            selection = default_selection(leaves)
        except SelectionError as error:
            raise SelectionError(f"{label}: {error}") from error
    names = tuple(n for n in selection.names if not any(matches(n, p) for p in exclude))
    reason = selection.reason + (f"; excluded: {', '.join(exclude)}" if exclude else "")
    if leaves and not names:
        raise SelectionError(f"{label}: no leaf is left ({reason}); name some with --include")
    kept = set(names)
    return Selection(names, tuple(n for n in leaves if n not in kept), reason)
