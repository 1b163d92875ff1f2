"""Leaves by name: the vocabulary every other module uses to talk about pytrees.

A leaf is named by its keys joined with ``/`` (``params/conv1/kernel``). Trees are paired by
name, never by position: stored integer keys come back as strings, and "10" sorts before "2".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes  # registers bfloat16 and float8 with numpy, too
import numpy as np

from lawa_jax.errors import TreeMismatchError

PyTree = Any

_ML_DTYPES = {
    name: np.dtype(kind)
    for name, kind in vars(ml_dtypes).items()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}

Index = tuple[slice, ...]
"""Where a block lies in a leaf: one slice (start, stop; step 1) a dimension."""


class LeafSpec(NamedTuple):
    """What a leaf is, without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the dense array."""
        return self.size * self.dtype.itemsize


def key_name(key: Any) -> str:
    """One entry of a JAX key path as plain text."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_name(path: Iterable[Any]) -> str:
    """The name of a leaf: its keys joined with ``/``; a bare array's name is ``.``."""
    return "/".join(key_name(key) for key in path) or "."


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves of `tree` by name, in flattening order.

    Raises:
      TreeMismatchError: two leaves have the same name (``{"a/b": x, "a": {"b": y}}``).
    """
    import jax  # half of what listing checkpoints would cost; it needs no arrays

    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = leaf_name(path)
        if name in named:
            raise TreeMismatchError(
                f"two leaves are both named {name!r}; rename one of them, since leaves are paired "
                "by name"
            )
        named[name] = leaf
    return named


def nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested dicts from leaves by key tuple: ``{("a", "b"): x}`` becomes ``{"a": {"b": x}}``.

    Raises:
      TreeMismatchError: a key is both a leaf and a branch.
    """
    root: dict[str, Any] = {}
    for keys, leaf in leaves.items():
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise TreeMismatchError(f"{'/'.join(keys)}: {key!r} is a leaf and a branch at once")
        if keys[-1] in node:
            raise TreeMismatchError(f"{'/'.join(keys)} occurs twice, or is a leaf and a branch")
        node[keys[-1]] = leaf
    return root


def spec_of(leaf: Any) -> LeafSpec:
    """Shape and dtype of an array, a `jax.ShapeDtypeStruct`, a PRNG key or a Python number."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return LeafSpec(tuple(leaf.shape), leaf.dtype)


def dtype_named(text: str) -> np.dtype:
    """The dtype of numbers that a text names: ``float32``, ``<f4``, ``bfloat16``.

    Raises:
      ValueError: it names none; objects, texts and records are no numbers.
    """
    unknown = f"arrays of dtype {text!r} are not supported"
    # NumPy takes texts such as "i4,f8" apart with Python's parser, and raises what that raises.
    if not re.fullmatch(r"[<>|=]?\w+", text, re.ASCII):
        raise ValueError(unknown)
    try:
        dtype = _ML_DTYPES[text] if text in _ML_DTYPES else np.dtype(text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(unknown) from error
    if dtype.kind not in "biufc" and text not in _ML_DTYPES:
        raise ValueError(unknown)
    return dtype


def is_averaged(dtype: Any) -> bool:
    """Whether leaves of this dtype are averaged: floating point (bfloat16, float8) and complex.

    Integers, booleans and PRNG keys count or identify something; their mean means nothing, so
    the newest is taken instead.
    """
    if isinstance(dtype, np.dtype):
        if dtype.type.__module__ != "ml_dtypes":
            return dtype.kind in "fc"
        try:
            return ml_dtypes.finfo(dtype).bits > 0
        except ValueError:  # int4 and its like
            return False
    import jax  # PRNG keys and scalar types; the command line needs neither

    return bool(jax.dtypes.issubdtype(dtype, np.inexact))


def check_compatible(specs: Mapping[str, Mapping[str, LeafSpec]]) -> None:
    """Check that trees can be combined leaf by leaf.

    Args:
      specs: for each tree, by its label (a checkpoint, "tree 2"), its leaves' specs by name.

    Raises:
      TreeMismatchError: names the first differing leaf, both trees, what was expected and found,
        and how many leaves differ in all.
    """
    labels = list(specs)
    if not labels:
        return
    first, expected = labels[0], specs[labels[0]]
    for label in labels[1:]:
        found = specs[label]
        problems = [
            f"leaf {name!r} is in {first} but not in {label}" for name in expected.keys() - found
        ]
        problems += [
            f"leaf {name!r} is in {label} but not in {first}" for name in found.keys() - expected
        ]
        problems += [
            f"leaf {name!r}: expected {expected[name]} as in {first}, "
            f"found {found[name]} in {label}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        if problems:
            problems.sort()
            more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
            raise TreeMismatchError(
                f"{problems[0]}{more}. Only checkpoints of one model can be averaged; choose "
                "leaves that agree with an include/exclude pattern, or convert the odd ones"
            )
