"""BatchNorm statistics of averaged weights: recomputed, averaged, or taken from the newest.

An average of weights is a network no batch has ever passed through, so the running statistics of
none of its sources are its own. Izmailov et al. 2018 (SWA, arXiv 1803.05407) recompute them with a
pass over training data; Kaddour 2022 (LAWA, arXiv 2209.14981) does so too and finds that copying
the newest is about equal.

The protocol
------------
Everything here works with one function of the caller's, in *train mode*::

    apply_fn(tree, batch) -> batch_stats        # the collection after one training forward pass

with `tree` a dict holding the collection under ``"batch_stats"``: nested dicts with a ``mean`` and
a ``var`` leaf for each BatchNorm. Flax Linen::

    lambda tree, x: model.apply(tree, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

Flax NNX, whose collection may be an `nnx.State`::

    model.train()
    graphdef, batch_stats, rest = nnx.split(model, nnx.BatchStat, ...)

    @jax.jit
    def apply_fn(tree, x):
        model = nnx.merge(graphdef, tree["batch_stats"], tree["rest"])
        model(x)
        return nnx.state(model, nnx.BatchStat)

    new = recalibrate(apply_fn, {"batch_stats": batch_stats, "rest": rest}, batches)
    nnx.update(model, new["batch_stats"])

Such a function returns *moved* statistics, ``m * old + (1 - m) * batch``, with a momentum m that
only the module knows. The moments of the batch are read off exactly by choosing `old`: zeros give
``(1 - m) * batch`` without cancellation, and one extra pass with `old` = 2**100 gives m itself. No
hooks into the modules, so any NNX or Linen model will do whose update is of this form and whose
train-mode outputs do not depend on the running statistics. Such variances are taken to be biased
(1/n), as Flax's are, and stay biased.

A function may instead return the moments themselves, by adding a leaf ``count`` beside ``mean`` and
``var`` (biased), the number of values per channel. The models of this package do so when called
with ``moments=True``; their variances then come out unbiased, as PyTorch stores them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lawa_jax.averaging.statistics import (
    COLLECTION,
    NNX_VALUE_KEYS,
    POLICIES,
    StatisticsPolicy,
    batch_statistics,
)
from lawa_jax.errors import NonFiniteError, TreeMismatchError
from lawa_jax.tree import PyTree, leaf_name, named_leaves

ApplyFn = Callable[[dict[str, Any], Any], dict[str, Any]]
# By BatchNorm name: mean, variance, and how many values (or samples) they are of.
_Moments = dict[str, tuple[np.ndarray, np.ndarray, int]]


def select_statistics(average: PyTree, newest: PyTree, policy: StatisticsPolicy) -> PyTree:
    """`average` with the BatchNorm statistics that `policy` asks for.

    Args:
      average: averaged tree (statistics averaged along with the parameters).
      newest: the newest of the averaged trees.
      policy: "latest" copies the statistics of `newest`; "average" keeps those of `average`;
        "recalibrate" keeps them too, to be replaced by `recalibrate`.

    Raises:
      ValueError: unknown policy.
      TreeMismatchError: `newest` lacks a statistic of `average`.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown BatchNorm policy {policy!r}; choose from {', '.join(POLICIES)}")
    if policy != "latest":
        return average
    ours, theirs = named_leaves(average), named_leaves(newest)
    wanted = batch_statistics(ours)
    missing = sorted(wanted - theirs.keys())
    if missing:
        raise TreeMismatchError(
            f"leaf {missing[0]!r} is a BatchNorm statistic of the average but not in the newest "
            "tree; average and newest must be of one model"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: theirs[name] if (name := leaf_name(path)) in wanted else leaf, average
    )


def recalibrate(
    apply_fn: ApplyFn,
    tree: dict[str, Any],
    batches: Iterable[Any],
    *,
    samples: Callable[[Any], int] | None = None,
) -> dict[str, Any]:
    """Recompute the statistics of every BatchNorm from `batches`, every sample weighed once.

    Moments are pooled over all batches: with n_b values in batch b, their mean and variance::

        mean = sum_b n_b mean_b / N,     var = sum_b n_b (var_b + (mean_b - mean)^2) / N

    summed in float64 by the update of Chan, Golub and LeVeque 1979 (``n_b n / (n_b + n)
    delta^2``), which does not cancel. The order of batches does not matter; their sizes do a
    little, since layers behind the first BatchNorm see batch-normalised inputs.

    Example: batches of 1 and 2 values, means 1 and 4, no spread: mean 3, variance 2 (biased).
    For a Flax Linen model::

        @jax.jit
        def apply_fn(tree, x):
            return model.apply(tree, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

        tree = lawa_jax.average_checkpoints(run, k=5)  # {"params": ..., "batch_stats": ...}
        tree = lawa_jax.recalibrate(apply_fn, tree, batches)

    The module's text shows Flax NNX.

    Args:
      apply_fn: see the module's text. Jit it: it is called once per batch, for the first twice.
      tree: the model, statistics under ``"batch_stats"``. Without any it is returned as it is.
      batches: training batches, passed to `apply_fn` one at a time and gone through once.
      samples: number of samples in a batch, used where `apply_fn` does not count; by default the
        leading dimension of the batch's first leaf.

    Returns:
      `tree` with new statistics (same dtypes and placement). Unbiased (N - 1) where `apply_fn`
      counts, biased otherwise.

    Raises:
      ValueError: no batches.
      NonFiniteError: a moment is NaN or infinite; names BatchNorm and batch.
      TreeMismatchError: a statistic without its partner or outside of ``"batch_stats"``, or
        `apply_fn` returned other leaves.
    """
    pooled: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}
    counted = False
    for batch in _batch_moments(apply_fn, tree, batches, samples):
        counted = batch.counted
        for name, (mean_b, var_b, n_b) in batch.moments.items():
            mean, squares, n = pooled.get(name, (np.zeros_like(mean_b), np.zeros_like(var_b), 0))
            delta = mean_b - mean
            squares = squares + var_b * n_b + delta**2 * (n * n_b / (n + n_b))
            pooled[name] = (mean + delta * (n_b / (n + n_b)), squares, n + n_b)
    return _replaced(
        tree,
        {
            name: (mean, squares / (max(n - 1, 1) if counted else n))
            for name, (mean, squares, n) in pooled.items()
        },
    )


def recalibrate_torch(
    apply_fn: ApplyFn, tree: dict[str, Any], batches: Iterable[Any]
) -> dict[str, Any]:
    """What ``torch.optim.swa_utils.update_bn`` computes: the plain mean of per-batch statistics.

    Every batch counts the same whatever its size, each variance is that of one batch (unbiased
    where `apply_fn` counts), and the spread between batch means is left out: 2-3 % below the
    pooled variance in practice. Arguments and errors as in `recalibrate`.
    """
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    total = 0
    for batch in _batch_moments(apply_fn, tree, batches, lambda _: 1):
        total += 1
        for name, (mean, var, n) in batch.moments.items():
            if batch.counted:
                var = var * (n / max(n - 1, 1))
            old_mean, old_var = sums.get(name, (np.zeros_like(mean), np.zeros_like(var)))
            sums[name] = (old_mean + mean, old_var + var)
    return _replaced(
        tree, {name: (mean / total, var / total) for name, (mean, var) in sums.items()}
    )


class _BatchMoments(NamedTuple):
    moments: _Moments
    counted: bool  # apply_fn returned counts, so variances can be made unbiased


def _batch_moments(
    apply_fn: ApplyFn,
    tree: dict[str, Any],
    batches: Iterable[Any],
    samples: Callable[[Any], int] | None,
) -> Iterator[_BatchMoments]:
    """Moments of every BatchNorm in each batch; in float64 on the host."""
    norms = _norms(tree)
    if not norms:
        elsewhere = sorted(batch_statistics(named_leaves(tree)))
        if COLLECTION not in tree and elsewhere:
            raise TreeMismatchError(
                f"expected the BatchNorm statistics under {COLLECTION!r}, found {elsewhere[0]!r}; "
                "split them off (nnx.split with nnx.BatchStat)"
            )
        return
    zeroed = _with_statistics(tree, 0.0)
    kept: dict[str, float] | None = None  # the momentum of each BatchNorm
    pending: tuple[int, dict[str, Any], int] | None = None
    number = -1
    for number, batch in enumerate(batches):
        size = _leading_dimension(batch) if samples is None else samples(batch)
        moved = apply_fn(zeroed, batch)
        if number == 0 and not _counts(moved):
            kept = _momenta(_leaves(apply_fn(_with_statistics(tree, _LARGE), batch)), norms)
        # Read one batch behind, so that the device works while the host adds.
        if pending is not None:
            yield _read(*pending, norms, kept)
        pending = number, moved, size
    if pending is None:
        raise ValueError("recalibration needs at least one batch, found none")
    yield _read(*pending, norms, kept)


def _read(
    number: int, moved: dict[str, Any], size: int, norms: list[str], kept: dict[str, float] | None
) -> _BatchMoments:
    leaves = _leaves(moved)
    moments: _Moments = {}
    for norm in norms:
        try:
            mean, var = (np.asarray(leaves[norm + key], np.float64) for key in ("mean", "var"))
        except KeyError as error:
            raise TreeMismatchError(
                f"apply_fn returned no leaf {error.args[0]!r}, which is in the tree's "
                f"{COLLECTION!r}; it must return that whole collection as updated in train mode"
            ) from None
        n = size
        if kept is None:
            n = int(leaves[norm + "count"])
        else:
            mean, var = mean / (1 - kept[norm]), var / (1 - kept[norm])
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            raise NonFiniteError(
                f"batch {number} of the recalibration gives NaN or infinite moments at BatchNorm "
                f"{norm.rstrip('/') or '.'}; check the averaged weights and the batch"
            )
        moments[norm] = mean, var, n
    return _BatchMoments(moments, kept is None)


# Far above any moment, so that what remains of it after one update is the momentum to full
# precision, and far below float32's and bfloat16's largest number.
_LARGE = 2.0**100


def _momenta(leaves: dict[str, Any], norms: list[str]) -> dict[str, float]:
    kept = {}
    for norm in norms:
        # The shortest decimal of the float32 number: 0.9, not 0.89999998.
        ratio = np.float32(np.asarray(leaves[norm + "mean"], np.float64).flat[0] / _LARGE)
        kept[norm] = float(str(ratio))
        if not 0.0 <= kept[norm] < 1.0:
            raise ValueError(
                f"BatchNorm {norm.rstrip('/') or '.'} keeps {kept[norm]:g} of its old statistics "
                "in one pass of apply_fn, expected a momentum in [0, 1): does it run in train mode "
                "and return the updated statistics?"
            )
    return kept


def _leaves(statistics: PyTree) -> dict[str, Any]:
    """Leaves by name; ``bn/mean`` also where an `nnx.State` calls it ``bn/mean/value``."""
    return {_plain(name): leaf for name, leaf in named_leaves(statistics).items()}


def _plain(name: str) -> str:
    head, _, last = name.rpartition("/")
    return head if head and last in NNX_VALUE_KEYS else name


def _norms(tree: dict[str, Any]) -> list[str]:
    """Prefixes (``bn1/``) of the BatchNorms in the collection."""
    names = _leaves(tree.get(COLLECTION, {}))
    prefixes = []
    for name in names:
        head, _, last = name.rpartition("/")
        prefix = head + "/" if head else ""
        partner = {"mean": "var", "var": "mean"}.get(last)
        if partner and prefix + partner not in names:
            raise TreeMismatchError(
                f"{COLLECTION}/{name} has no {partner!r} beside it; expected a mean and a var of "
                "each BatchNorm"
            )
        if last == "mean":
            prefixes.append(prefix)
    return prefixes


def _with_statistics(tree: dict[str, Any], value: float) -> dict[str, Any]:
    """`tree` with every mean and var filled with `value`, in float32 at least."""

    def fill(path: Any, leaf: Any) -> Any:
        if _plain(leaf_name(path)).rpartition("/")[2] not in ("mean", "var"):
            return leaf
        wide = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32
        return jnp.full_like(leaf, value, dtype=wide)

    return {**tree, COLLECTION: jax.tree_util.tree_map_with_path(fill, tree[COLLECTION])}


def _replaced(
    tree: dict[str, Any], statistics: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    if not statistics:
        return tree

    def put(path: Any, leaf: Any) -> Any:
        head, _, last = _plain(leaf_name(path)).rpartition("/")
        if last not in ("mean", "var"):
            return leaf
        mean, var = statistics[head + "/" if head else ""]
        value = (mean if last == "mean" else var).astype(leaf.dtype)
        return jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else value

    return {**tree, COLLECTION: jax.tree_util.tree_map_with_path(put, tree[COLLECTION])}


def _counts(statistics: dict[str, Any]) -> bool:
    return any(name.rpartition("/")[2] == "count" for name in _leaves(statistics))


def _leading_dimension(batch: Any) -> int:
    leaves = jax.tree.leaves(batch)
    if not leaves or not np.ndim(leaves[0]):
        raise ValueError(
            "cannot tell how many samples a batch holds: its first leaf is no array with a leading "
            "dimension; pass samples="
        )
    return int(np.shape(leaves[0])[0])
