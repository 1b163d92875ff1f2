"""Two-way rules between the names (and array layouts) of another framework and ours.

A rule is a pair of templates with the same placeholders, read in both directions::

    Rule("layer{s}.{b}.conv{k}.weight", "params/layer{s}/{b}/conv{k}/kernel", "conv")

``{s}`` stands for a number, ``{p:q|k|v}`` for one of the words.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Layout = Literal["same", "conv", "linear"]

# Axes of ours in terms of theirs: OIHW -> HWIO, (out, in) -> (in, out).
_AXES: dict[str, tuple[int, ...]] = {"conv": (2, 3, 1, 0), "linear": (1, 0)}
_ROWS = 16
_PLACEHOLDER = re.compile(r"\{(\w+)(?::([\w|]+))?\}")


class Rule(NamedTuple):
    """One correspondence of names.

    Attributes:
      theirs: template of the name in the other framework.
      ours: template of our leaf name.
      layout: "conv" (their OIHW is our HWIO), "linear" (their (out, in) is our (in, out)), "same".
    """

    theirs: str
    ours: str
    layout: Layout = "same"


class Match(NamedTuple):
    """A translated name and the layout of its array."""

    name: str
    layout: Layout


@functools.cache
def _pattern(template: str, other: str) -> re.Pattern[str]:
    """What `template` matches; the words of a placeholder may be listed in the `other` one."""
    listed = {f[1]: f[2] for t in (template, other) for f in _PLACEHOLDER.finditer(t) if f[2]}
    parts, end = [], 0
    for found in _PLACEHOLDER.finditer(template):
        words = listed.get(found.group(1), r"0|[1-9][0-9]*")
        parts += [re.escape(template[end : found.start()]), f"(?P<{found.group(1)}>{words})"]
        end = found.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def _filled(template: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found.group(1)], template)


def to_ours(rules: Iterable[Rule], name: str) -> Match | None:
    """Our leaf name for theirs; None if no rule fits.

    Example: with the rule above ``layer1.0.conv2.weight`` gives
    ``Match("params/layer1/0/conv2/kernel", "conv")``.
    """
    for rule in rules:
        found = _pattern(rule.theirs, rule.ours).fullmatch(name)
        if found:
            return Match(_filled(rule.ours, found.groupdict()), rule.layout)
    return None


def to_theirs(rules: Iterable[Rule], name: str) -> Match | None:
    """Their name for our leaf's; None if no rule fits."""
    for rule in rules:
        found = _pattern(rule.ours, rule.theirs).fullmatch(name)
        if found:
            return Match(_filled(rule.theirs, found.groupdict()), rule.layout)
    return None


def laid_out_as_ours(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A view of their array with our axes."""
    return array if layout == "same" else array.transpose(_AXES[layout])


def laid_out_as_theirs(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A view of our array with their axes; the inverse of `laid_out_as_ours`."""
    return array if layout == "same" else array.transpose(np.argsort(_AXES[layout]))


def copied_as_ours(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Their array with our axes, C-contiguous; `array` itself where nothing is to be moved.

    Their first axis is our last, so a plain transposition reads or writes with the longest stride
    there is. A few of their rows at a time stay in the cache: 3 to 8 times faster.
    """
    view = laid_out_as_ours(array, layout)
    if view.flags.c_contiguous:
        return view
    if layout == "same":
        return np.ascontiguousarray(view)
    out = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[-1], _ROWS):
        out[..., start : start + _ROWS] = view[..., start : start + _ROWS]
    return out


def shape_as_ours(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """The shape that `laid_out_as_ours` gives."""
    return tuple(shape) if layout == "same" else tuple(shape[axis] for axis in _AXES[layout])


def rank_fits(shape: Sequence[int], layout: Layout) -> bool:
    """Whether an array of this shape has the number of axes that the layout permutes."""
    return layout == "same" or len(shape) == len(_AXES[layout])


def common_prefix(names: Iterable[str], prefixes: Sequence[str] = ("module.", "_orig_mod.")) -> str:
    """What wrappers (DataParallel, torch.compile) put before every single name.

    Example: ``["module._orig_mod.a", "module._orig_mod.b"]`` gives ``"module._orig_mod."``.
    """
    names = list(names)
    found = ""
    while names:
        prefix = next((p for p in prefixes if all(n.startswith(found + p) for n in names)), "")
        if not prefix or any(n == found + prefix for n in names):
            break
        found += prefix
    return found
