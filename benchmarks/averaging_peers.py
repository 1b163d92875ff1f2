"""What a user would run instead, written in the peers' manner; each gives float32 arrays by name.

All read the same values that `averaging_data` has written, in the format they read.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.trajectory.formats.torch_files import import_torch

Leaves = dict[str, np.ndarray]


def _module(shapes: dict[str, tuple[int, ...]]) -> Any:
    """A torch module with these parameters (batch statistics as buffers)."""
    torch = import_torch()
    root = torch.nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split("/")
        node = root
        for key in path:
            if not hasattr(node, key):
                node.add_module(key, torch.nn.Module())
            node = getattr(node, key)
        if path[0] == "batch_stats":
            node.register_buffer(last, torch.empty(shape))
        else:
            node.register_parameter(last, torch.nn.Parameter(torch.empty(shape)))
    return root


def original_loop(files: Sequence[Path], shapes: dict[str, tuple[int, ...]]) -> Leaves:
    """As the LAWA repository does: load each file, load it into the model, running mean in place
    of a second model."""
    torch = import_torch()
    model, average = _module(shapes), _module(shapes)
    with torch.no_grad():
        for n, file in enumerate(files):
            state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
            model.load_state_dict(state)
            ours, theirs = average.state_dict(), model.state_dict()
            for name, value in ours.items():
                if n == 0:
                    value.copy_(theirs[name])
                else:
                    value.copy_(value + (theirs[name] - value) / (n + 1))
    return {name.replace(".", "/"): t.numpy() for name, t in average.state_dict().items()}


def mapped_loop(files: Sequence[Path]) -> Leaves:
    """The least a torch user can write: memory-mapped files, float32 sums in place."""
    torch = import_torch()
    total: dict[str, Any] = {}
    for file in files:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        for name, value in content["state_dict"].items():
            if name in total:
                total[name] += value
            else:
                total[name] = value.clone()
    return {n.replace(".", "/"): t.div_(len(files)).numpy() for n, t in total.items()}


def float64_averager(files: Sequence[Path]) -> Leaves:
    """As timm's averaging script: whole files, float64 sums, back to float32."""
    torch = import_torch()
    total: dict[str, Any] = {}
    for file in files:
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        for name, value in state.items():
            value = value.to(torch.float64)
            if name in total:
                total[name] += value
            else:
                total[name] = value
    return {
        n.replace(".", "/"): t.div_(len(files)).to(torch.float32).numpy() for n, t in total.items()
    }


def orbax_tree_map(run: Path, steps: Sequence[int], shapes: dict[str, tuple[int, ...]]) -> Leaves:
    """The obvious JAX port: restore each step with Orbax, add with a jitted `jax.tree.map`."""
    import jax
    import orbax.checkpoint as ocp

    from lawa_jax.tree import named_leaves, nested

    target = nested(
        {tuple(n.split("/")): jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
    )
    add = jax.jit(lambda a, b: jax.tree.map(lambda x, y: x + y, a, b), donate_argnums=0)
    total = None
    with ocp.CheckpointManager(run.absolute()) as manager:
        for step in steps:
            tree = manager.restore(step, args=ocp.args.StandardRestore(target))
            total = tree if total is None else add(total, tree)
    k = np.float32(len(steps))
    mean = jax.jit(lambda t: jax.tree.map(lambda x: x / k, t))(total)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(mean).items()}


def floor(folders: Sequence[Path], block: int = 2 << 20) -> None:
    """The least that reading and adding can take: raw chunk files of our checkpoints, two threads,
    `preadv` into one buffer each, float64 adds; no checks, no division, no output."""
    groups: list[list[Path]] = []
    for file in sorted(p for p in folders[0].rglob("*") if p.is_file()):
        if file.name[0] != "." and file.parent.parent == folders[0]:
            groups.append([folder / file.relative_to(folders[0]) for folder in folders])
    tasks = [
        (group, offset) for group in groups for offset in range(0, group[0].stat().st_size, block)
    ]

    def work(lane: int) -> None:
        raw = bytearray(block)
        total = np.empty(block // 4, np.float64)
        opened: list[int] = []
        current: list[Path] | None = None
        for group, offset in tasks[lane::2]:
            if group is not current:
                for fd in opened:
                    os.close(fd)
                opened, current = [os.open(path, os.O_RDONLY) for path in group], group
            for n, fd in enumerate(opened):
                size = os.preadv(fd, [raw], offset)
                values = np.frombuffer(raw, np.float32, size // 4)
                if n == 0:
                    np.copyto(total[: len(values)], values)
                else:
                    np.add(total[: len(values)], values, out=total[: len(values)])
        for fd in opened:
            os.close(fd)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
