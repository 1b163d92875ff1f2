"""torchvision's ResNet names and layouts, both ways.

Convolutions OIHW -> HWIO, the last layer (out, in) -> (in, out), BatchNorm's
weight/bias/running_mean/running_var -> scale/bias/mean/var. ``num_batches_tracked`` is kept as
integer state (``buffers/``), which averaging takes from the newest checkpoint.
"""

from collections.abc import Iterable, Mapping

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop.names import Conversion, Entry, Names
from lawa_jax.interop.rules import Layout, Rule, common_prefix, rank_fits, to_ours, to_theirs
from lawa_jax.models.resnet import ARCHITECTURES
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec

_WIDTHS = (64, 128, 256, 512)
_COUNTER = "num_batches_tracked"


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"params/{ours}/scale"),
        Rule(f"{theirs}.bias", f"params/{ours}/bias"),
        Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
        Rule(f"{theirs}.{_COUNTER}", f"buffers/{ours}/{_COUNTER}"),
    ]


_BLOCK, _OUR_BLOCK = "layer{s}.{b}", "layer{s}/{b}"
RULES: tuple[Rule, ...] = (
    Rule("conv1.weight", "params/conv1/kernel", "conv"),
    *_norm("bn1", "bn1"),
    Rule(f"{_BLOCK}.conv{{k}}.weight", f"params/{_OUR_BLOCK}/conv{{k}}/kernel", "conv"),
    *_norm(f"{_BLOCK}.bn{{k}}", f"{_OUR_BLOCK}/bn{{k}}"),
    Rule(f"{_BLOCK}.downsample.0.weight", f"params/{_OUR_BLOCK}/downsample/conv/kernel", "conv"),
    *_norm(f"{_BLOCK}.downsample.1", f"{_OUR_BLOCK}/downsample/bn"),
    Rule("fc.weight", "params/fc/kernel", "linear"),
    Rule("fc.bias", "params/fc/bias"),
)


def expected_shapes(
    arch: str, num_classes: int, in_channels: int = 3, *, counters: bool = True
) -> dict[str, tuple[int, ...]]:
    """Every name and shape of torchvision's state dict, in its order.

    Args:
      arch: a key of `ARCHITECTURES`.
      num_classes: outputs of the last layer.
      in_channels: channels of the images.
      counters: with ``num_batches_tracked`` (PyTorch >= 0.4.1 has them).
    """
    architecture = ARCHITECTURES[arch]
    bottleneck = architecture.block == "bottleneck"
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        if counters:
            shapes[f"{name}.{_COUNTER}"] = ()

    shapes["conv1.weight"] = (64, in_channels, 7, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(
        zip(architecture.stage_sizes, _WIDTHS, strict=True), start=1
    ):
        outputs = width * (4 if bottleneck else 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            sizes = [(width, 1), (width, 3), (outputs, 1)] if bottleneck else [(width, 3)] * 2
            channels = inputs
            for index, (features, kernel) in enumerate(sizes, start=1):
                shapes[f"{name}.conv{index}.weight"] = (features, channels, kernel, kernel)
                norm(f"{name}.bn{index}", features)
                channels = features
            if inputs != outputs or (stage > 1 and block == 0):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    shapes["fc.weight"] = (num_classes, inputs)
    shapes["fc.bias"] = (num_classes,)
    return shapes


def guess(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The torchvision architecture whose convolutions have exactly these names and shapes."""
    for arch in ARCHITECTURES:
        wanted = expected_shapes(arch, 1)
        convolutions = {n: s for n, s in wanted.items() if len(s) == 4 and n != "conv1.weight"}
        found = {n: s for n, s in shapes.items() if n in convolutions or ".conv" in n}
        if all(found.get(n) == s for n, s in convolutions.items()) and len(found) == len(
            convolutions
        ):
            return arch
    return None


def _nearest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture with the fewest names that only one side has."""
    return min(ARCHITECTURES, key=lambda arch: len(expected_shapes(arch, 1).keys() ^ shapes.keys()))


def convert(state: StateDict, arch: str) -> Conversion:
    """A torchvision ResNet's state dict as a tree of `lawa_jax.models.resnet`.

    Args:
      state: the open file.
      arch: the expected architecture, or "auto".

    Raises:
      TreeMismatchError: it is another architecture; lists the first differing names and guesses
        which one it is.
    """
    prefix = common_prefix(state.specs)
    shapes = {name.removeprefix(prefix): spec.shape for name, spec in state.specs.items()}
    guessed = guess(shapes)
    if arch == "auto":
        arch = guessed or _nearest(shapes)
    head, stem = shapes.get("fc.weight", ()), shapes.get("conv1.weight", ())
    expected = expected_shapes(
        arch,
        head[0] if len(head) == 2 else 1000,
        stem[1] if len(stem) == 4 else 3,
        counters=any(name.endswith(_COUNTER) for name in shapes),
    )
    problems = [f"{name!r} is missing" for name in expected if name not in shapes]
    problems += [f"{name!r} is not expected" for name in shapes if name not in expected]
    problems += [
        f"{name!r} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    problems += [f"{name!r} is no tensor" for name in (*state.objects, *state.skipped)]
    if problems:
        raise _mismatch(state, arch, problems, guessed)
    model = {
        "arch": arch,
        "num_classes": expected["fc.bias"][0],
        "in_channels": expected["conv1.weight"][1],
    }
    return Conversion(_names(state, prefix), model, _notes(state, arch))


def _notes(state: StateDict, arch: str) -> tuple[str, ...]:
    said = state.facts.get("arch")
    return (
        (f"the file says arch {said!r}, its tensors say {arch}",)
        if said not in (None, arch)
        else ()
    )


def _names(state: StateDict, prefix: str) -> Names:
    entries = []
    for name, spec in state.specs.items():
        if name in state.shared:
            continue
        match = to_ours(RULES, name.removeprefix(prefix))
        if match is None or not rank_fits(spec.shape, match.layout):  # checked by `convert`
            raise TreeMismatchError(f"{state.label}: no rule for {name!r}")
        keys = tuple(match.name.split("/"))
        entries.append(Entry(name, keys, match.layout, spec.shape, spec.dtype.name))
    return Names(tuple(entries), tuple(state.specs), dict(state.shared), wrapper=state.wrapper)


def _mismatch(
    state: StateDict, arch: str, problems: list[str], guessed: str | None
) -> TreeMismatchError:
    shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if problems[5:] else "")
    remedy = (
        f"It looks like {guessed}: say --arch {guessed}"
        if guessed and guessed != arch
        else "It is none of torchvision's ResNets: convert/state_dicts.py converts any model"
    )
    return TreeMismatchError(f"{state.label} is no {arch}: {shown or 'names differ'}. {remedy}")


def names_for(specs: Mapping[str, LeafSpec]) -> Names:
    """Names for a run that was trained here, in torchvision's order.

    Raises:
      TreeMismatchError: a leaf is not one of a ResNet.
    """
    entries: list[Entry] = []
    for leaf, spec in specs.items():
        match = to_theirs(RULES, leaf)
        if match is None:
            raise TreeMismatchError(f"leaf {leaf!r} is no ResNet's; use convert/state_dicts.py")
        shape = _shape_as_theirs(spec.shape, match.layout)
        entries.append(
            Entry(match.name, tuple(leaf.split("/")), match.layout, shape, spec.dtype.name)
        )
    order = _torchvision_order(entry.name for entry in entries)
    entries.sort(key=lambda entry: order[entry.name])
    return Names(tuple(entries), tuple(e.name for e in entries), wrapper=("state_dict",))


def _shape_as_theirs(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout == "conv":
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1] if layout == "linear" else shape


def _torchvision_order(names: Iterable[str]) -> dict[str, int]:
    """Position of each name: stem, blocks (convolution and norm in turn), last layer."""
    parts = ("weight", "bias", "running_mean", "running_var", _COUNTER)

    def key(name: str) -> tuple[object, ...]:
        pieces = name.split(".")
        part = parts.index(pieces[-1])
        if pieces[0] == "fc":
            return (2, 0, 0, 0, 0, part)
        if pieces[0].startswith("layer"):
            module = pieces[2]
            down = module == "downsample"
            index = 9 if down else int(module[-1])
            norm = int(pieces[3]) if down else int(module.startswith("bn"))
            return (1, int(pieces[0][5:]), int(pieces[1]), index, norm, part)
        return (0, 0, 0, 0, int(pieces[0].startswith("bn")), part)

    return {name: i for i, name in enumerate(sorted(names, key=key))}
