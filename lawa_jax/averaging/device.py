r"""The weighted combination of pytrees, jitted, on whatever device the trees live.

``theta = sum_j w_j theta_j / sum_j w_j`` (arXiv 2209.14981, section 3, with ``w_j = 1``), summed
from the oldest to the newest, divided once and rounded once to the output dtype.

Two precisions:

``"float64"`` (CPU and GPU) sums and divides in float64 under a scoped ``enable_x64``. Leaves of at
most 32 bits come out as the float64 mean rounded once; float64 leaves are summed as differences
from the oldest, so that the mean of identical trees is the tree, bit for bit. The host kernel in
`lawa_jax.averaging.host` gives the same bits, except for subnormal numbers, which XLA may flush
to zero.

``"compensated"`` (TPU, which has no fast float64) sums in pairs of float32 with error-free products
and sums. For leaves of at most 32 bits the error before the final rounding is at most
``2^-44 (|theta| + 2 N^2 sum_j |c_j theta_j|) + 2^-120 N / |sum_j w_j|``, where the last term stands
for what falls below float32's normal range; partial sums of ``w_j theta_j`` must stay below its
upper end, and weights are restricted accordingly. A result of -0.0 may come back as 0.0.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lawa_jax import tree as trees_
from lawa_jax.averaging import summation
from lawa_jax.averaging.coefficients import check_weights
from lawa_jax.averaging.summation import Precision, Sum
from lawa_jax.errors import SelectionError, TreeMismatchError
from lawa_jax.tree import PyTree


def average(
    trees: Sequence[PyTree],
    weights: Sequence[float] | None = None,
    *,
    dtype: Any = None,
    donate: bool = False,
    precision: Precision = "auto",
) -> PyTree:
    """The weighted average of pytrees held in memory, each read once by one jitted computation.

    >>> float(average([{"w": jnp.float32(1)}, {"w": jnp.float32(4)}], [2.0, 1.0])["w"])
    2.0

    Compiled once per (structure, number of trees).

    Args:
      trees: pytrees of equal structure, oldest first.
      weights: one finite number a tree; they are divided by their sum. Equal weights by default.
      dtype: dtype of the averaged leaves; each leaf's own by default. ``float32`` keeps what
        rounding back to bfloat16 would discard.
      donate: let the trees' buffers be reused; the trees must not be used afterwards.
      precision: ``"float64"``, ``"compensated"``, or the one for the default backend.

    Returns:
      A tree of the same structure. Integer, boolean and PRNG-key leaves are the newest tree's.

    Raises:
      SelectionError: no trees, weights that do not fit, or a `dtype` that is no float.
      TreeMismatchError: the trees differ in leaves, shapes or dtypes.
    """
    trees = list(trees)
    w, total = check_weights(len(trees), weights)
    chosen, to = summation.resolve(precision), _dtype_name(dtype)
    structure, leaves = _flatten_alike(trees)
    arrays = [leaf for tree in leaves for leaf in tree]
    # A buffer that occurs twice (tied weights, one tree given twice) cannot be donated.
    tied = len({id(leaf) for leaf in arrays}) < len(arrays)
    with jax.enable_x64(True):
        out = (_average_donating if donate and not tied else _average)(
            leaves[0], leaves[1:], *summation.operands(w, total, chosen), chosen, to
        )
    _finish_reading(arrays, out)
    if donate:
        kept = {id(leaf) for leaf in out}
        for leaf in arrays:
            if isinstance(leaf, jax.Array) and id(leaf) not in kept and not leaf.is_deleted():
                leaf.delete()
    return jax.tree.unflatten(structure, out)


class Accumulator:
    """The same average, one tree at a time, so that memory does not grow with their number.

    >>> acc = Accumulator()
    >>> for tree in ({"w": jnp.float32(1)}, {"w": jnp.float32(4)}):
    ...     acc.add(tree)
    >>> float(acc.result()["w"])
    2.5

    Trees are added from the oldest to the newest. Every computation compiles once per structure,
    whatever the number of trees.
    """

    def __init__(self, *, dtype: Any = None, precision: Precision = "auto") -> None:
        self._dtype = _dtype_name(dtype)
        self._precision = summation.resolve(precision)
        self._weights: list[float] = []
        self._structure: Any = None
        self._example: PyTree = None
        self._sums: list[Sum | None] = []
        self._newest: list[Any] = []
        self._like: tuple[Any, ...] = ()

    def add(self, tree: PyTree, weight: float = 1.0, *, label: str | None = None) -> None:
        """Add a tree (newer than all before) with a weight relative to the others'.

        Raises:
          TreeMismatchError: it differs in leaves, shapes or dtypes from the trees before.
          SelectionError: the weight is not finite.
        """
        if not math.isfinite(weight):
            raise SelectionError(f"expected a finite weight, found {weight}")
        label = label or f"tree {len(self._weights) + 1}"
        specs = {n: trees_.spec_of(x) for n, x in trees_.named_leaves(tree).items()}
        leaves, structure = jax.tree.flatten(tree)
        with jax.enable_x64(True):
            if not self._weights:
                self._structure, self._example, self._first = structure, specs, label
                self._like = tuple(trees_.spec_of(x).dtype for x in leaves)
            else:
                trees_.check_compatible({self._first: self._example, label: specs})
                if structure != self._structure:
                    raise TreeMismatchError(
                        f"{label} has the leaves of {self._first} in other containers: expected "
                        f"{self._structure}, found {structure}"
                    )
            pieces, _, zero = summation.operands([weight], 1.0, self._precision)
            if not self._weights:
                self._sums = _first(leaves, pieces[0], zero, self._precision)
            else:
                self._sums = _add(self._sums, leaves, pieces[0], zero, self._precision)
        _finish_reading(leaves, self._sums)
        # What is not averaged comes from the newest; what is must not be kept alive.
        self._newest = [
            (np.array(leaf) if isinstance(leaf, np.ndarray) else leaf) if total is None else None
            for leaf, total in zip(leaves, self._sums, strict=True)
        ]
        self._weights.append(weight)

    def result(self) -> PyTree:
        """The average of the trees added so far; more may be added afterwards.

        Raises:
          SelectionError: nothing was added, or the weights sum to zero.
        """
        _, total = check_weights(len(self._weights), self._weights)
        with jax.enable_x64(True):
            _, divisor, zero = summation.operands([1.0], total, self._precision)
            out = _finish(
                self._sums, self._newest, divisor, zero, self._like, self._precision, self._dtype
            )
        return jax.tree.unflatten(self._structure, out)


def lower_addition(tree: PyTree, *, precision: Precision = "compensated") -> Any:
    """Adding one tree to the sum, lowered for the devices its abstract leaves live on.

    For compiling ahead of time: ``lower_addition(shapes).compile()``.

    Args:
      tree: `jax.ShapeDtypeStruct` leaves with shardings.
      precision: see `Accumulator`; ``"compensated"`` is that of TPUs.
    """
    leaves = jax.tree.leaves(tree)
    with jax.enable_x64(True):
        pieces, _, zero = summation.operands([1.0], 1.0, precision)
        sums = jax.eval_shape(lambda x: _first_all(x, pieces[0], zero, precision), leaves)
        # The parts of a leaf's sum have its shape, and live where it does.
        placed = [
            jax.tree.map(
                lambda part, at=leaf.sharding: jax.ShapeDtypeStruct(
                    part.shape, part.dtype, sharding=at
                ),
                total,
            )
            for leaf, total in zip(leaves, sums, strict=True)
        ]
        return _add.lower(placed, leaves, pieces[0], zero, precision)


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    if not trees_.is_averaged(jnp.dtype(dtype)):
        raise SelectionError(
            f"expected a floating-point dtype for the average, found {jnp.dtype(dtype).name}"
        )
    return jnp.dtype(dtype).name


def _finish_reading(leaves: Sequence[Any], out: Any) -> None:
    """Wait until numpy arrays are read: JAX reads them in place, and their owner may go on."""
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        jax.block_until_ready(out)


def _flatten_alike(trees: Sequence[PyTree]) -> tuple[Any, list[list[Any]]]:
    flat: list[tuple[list[Any], Any]] = [jax.tree.flatten(tree) for tree in trees]
    specs = {
        f"tree {i + 1}": {n: trees_.spec_of(x) for n, x in trees_.named_leaves(tree).items()}
        for i, tree in enumerate(trees)
    }
    trees_.check_compatible(specs)
    for i, (_, structure) in enumerate(flat):
        if structure != flat[0][1]:
            raise TreeMismatchError(
                f"tree {i + 1} has the leaves of tree 1 in other containers: expected "
                f"{flat[0][1]}, found {structure}"
            )
    return flat[0][1], [leaves for leaves, _ in flat]


def _first_all(leaves: Any, weight: Any, zero: Any, precision: str) -> list[Sum | None]:
    return [
        summation.first(leaf, weight, zero, precision)
        if trees_.is_averaged(trees_.spec_of(leaf).dtype)
        else None
        for leaf in leaves
    ]


def _add_all(sums: Any, leaves: Any, weight: Any, zero: Any, precision: str) -> list[Sum | None]:
    return [
        None if total is None else summation.add(total, leaf, weight, zero, precision)
        for total, leaf in zip(sums, leaves, strict=True)
    ]


def _finish_all(
    sums: Any, newest: Any, divisor: Any, zero: Any, like: Any, precision: str, dtype: str | None
) -> list[Any]:
    return [
        leaf if total is None else summation.finish(total, divisor, zero, kind, precision, dtype)
        for total, leaf, kind in zip(sums, newest, like, strict=True)
    ]


def _average_all(
    first: Any,
    others: Any,
    weights: Any,
    divisor: Any,
    zero: Any,
    precision: str,
    dtype: str | None,
) -> list[Any]:
    sums = _first_all(first, weights[0], zero, precision)
    like = [trees_.spec_of(leaf).dtype for leaf in first]
    for j, leaves in enumerate(others):
        sums = _add_all(sums, leaves, weights[j + 1], zero, precision)
    return _finish_all(sums, (first, *others)[-1], divisor, zero, like, precision, dtype)


_STATIC = ("precision", "dtype")
_average = jax.jit(_average_all, static_argnames=_STATIC)
# One tree's buffers can hold the result; the others are deleted afterwards.
_average_donating = jax.jit(_average_all, static_argnames=_STATIC, donate_argnums=0)
_first = jax.jit(_first_all, static_argnames="precision")
_add = jax.jit(_add_all, static_argnames="precision", donate_argnums=0)
_finish = jax.jit(_finish_all, static_argnames=("like", *_STATIC))
