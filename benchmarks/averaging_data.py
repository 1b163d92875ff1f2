"""Checkpoints for the averaging benchmark: real shapes, seeded random numbers, several formats."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.output import StepWriter, write_checkpoint
from lawa_jax.trajectory.formats.torch_files import import_torch
from lawa_jax.tree import LeafSpec, named_leaves, nested

Leaves = dict[str, np.ndarray]


@functools.cache
def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all leaves of "resnet50" (25.6M numbers and batch statistics) or "roberta"."""
    import jax

    from lawa_jax.models.functional import functional
    from lawa_jax.models.resnet import resnet
    from lawa_jax.models.roberta import BASE, Roberta

    base: dict[str, Any] = dict(BASE)
    build = {
        "resnet50": lambda rngs: resnet("resnet50", rngs=rngs),
        "roberta": lambda rngs: Roberta(vocab_size=50_265, rngs=rngs, **base),
    }[model]
    tree = jax.eval_shape(lambda: functional(build).init(0))
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def leaves(model: str, epoch: int) -> Leaves:
    """The checkpoint of one epoch: float32 numbers, never zeros."""
    random = np.random.default_rng(epoch)
    return {
        name: random.standard_normal(shape, np.float32) for name, shape in shapes(model).items()
    }


def make_run(folder: Path, model: str, epochs: int) -> Path:
    """A run directory as lawa-jax's trainers write it."""
    for epoch in range(1, epochs + 1):
        if not (folder / "epochs" / str(epoch)).exists():
            tree = nested({tuple(n.split("/")): a for n, a in leaves(model, epoch).items()})
            write_checkpoint(folder / "epochs" / str(epoch), tree)
    return folder


def make_foreign_run(folder: Path, model: str, epochs: int) -> Path:
    """A run directory as Orbax's CheckpointManager writes it by default: OCDBT, zstd."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder.absolute()) as manager:
        for epoch in range(1, epochs + 1):
            if epoch not in manager.all_steps():
                tree = nested({tuple(n.split("/")): a for n, a in leaves(model, epoch).items()})
                manager.save(epoch, args=ocp.args.StandardSave(tree))
    return folder


def make_torch(folder: Path, model: str, epochs: int, optimizer_states: int) -> list[Path]:
    """``checkpoint{epoch}.pt``: the model, and as many tensors as the optimizer kept of it."""
    torch = import_torch()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"checkpoint{epoch}.pt" for epoch in range(1, epochs + 1)]
    for epoch, file in enumerate(files, 1):
        if not file.exists():
            state = {
                name.replace("/", "."): torch.from_numpy(a)
                for name, a in leaves(model, epoch).items()
            }
            kept = [{n: t.clone() for n, t in state.items()} for _ in range(optimizer_states)]
            torch.save({"epoch": epoch, "state_dict": state, "optimizer": kept}, file)
    return files


BLOCK = 1 << 22
PER_LEAF = 16


def large_block(seed: int, number: int) -> np.ndarray:
    """A block of the large model, the same whenever it is asked for."""
    return np.random.default_rng((seed, number)).standard_normal(BLOCK, np.float32)


def large_specs(parameters: int) -> dict[str, LeafSpec]:
    """Leaves of a model of at least so many parameters, `PER_LEAF` blocks each."""
    count = -(-parameters // (PER_LEAF * BLOCK))
    return {
        f"params/layer{i}/kernel": LeafSpec((PER_LEAF * BLOCK,), np.dtype(np.float32))
        for i in range(count)
    }


def make_large_run(folder: Path, parameters: int, epochs: int) -> Path:
    """A run of a large model: two checkpoints on disk, hard-linked in turn as `epochs` steps."""
    specs = large_specs(parameters)
    keys = {name: tuple(name.split("/")) for name in specs}
    for epoch in (1, 2):
        target = folder / "epochs" / str(epoch)
        if target.exists():
            continue
        with StepWriter(target, specs, keys) as writer:
            for i, name in enumerate(specs):
                for j in range(PER_LEAF):
                    index = (slice(j * BLOCK, (j + 1) * BLOCK),)
                    writer.write(name, index, large_block(epoch, PER_LEAF * i + j))
            writer.finish(verify=False)
    for epoch in range(3, epochs + 1):
        source, target = (folder / "epochs" / str(e) for e in (2 - epoch % 2, epoch))
        if not target.exists():
            _link_tree(source, target)
    return folder


def _link_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


def files_of(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in files_of(folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def remember(folder: Path) -> None:
    """Bring a folder's files into the page cache."""
    buffer: Any = bytearray(1 << 22)
    for path in files_of(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
