"""Opening whatever holds a state dict: a file of either format, or a directory of shards."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lawa_jax.errors import CheckpointNotFoundError, CorruptCheckpointError, SelectionError
from lawa_jax.trajectory.formats import safetensors_files, torch_files, trainer_folders
from lawa_jax.trajectory.formats.state_dict import StateDict

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
_TRAINER_STATE = "trainer_state.json"
_CONFIG = "config.json"
_SETTINGS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "position_embedding_type",
    "pad_token_id",
)
_LFS = b"version https://git-lfs.github.com/spec/"


def is_checkpoint_directory(path: Path) -> bool:
    """Whether a directory is one checkpoint: a trainer's folder, shards, a single model file."""
    return path.is_dir() and (
        trainer_folders.model_file(path) is not None
        or trainer_folders.refusal(path) is not None
        or any(path.glob("*.index.json"))
        or len(_weight_files(path)) == 1
    )


def _weight_files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())


def open_state(path: Path, *, wrapper: str | None = None, stubs: Iterable[str] = ()) -> StateDict:
    """Open one checkpoint; tensors stay on disk until they are read.

    Args:
      path: a ``.safetensors`` or ``torch.save`` file, or a directory holding one, or shards and
        their ``*.index.json``.
      wrapper: key of the state dict in a torch file.
      stubs: classes in torch files that may be replaced by inert stubs.

    Raises:
      CheckpointNotFoundError: nothing there, or no weights in the directory.
      CorruptCheckpointError: a file is damaged, or a shard misses what the index says.
      UnsafePickleError, TreeMismatchError: see `torch_files.read`.
    """
    if path.is_dir():
        return _open_directory(path, wrapper, tuple(stubs))
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CorruptCheckpointError(
                f"{path}: a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
            )
    if path.suffix == ".safetensors":
        if wrapper is not None:
            raise SelectionError(
                f"{path}: a safetensors file has no keys around its tensors; leave --wrapper out"
            )
        return safetensors_files.read(path)
    return torch_files.read(path, wrapper=wrapper, stubs=stubs)


def _open_directory(path: Path, wrapper: str | None, stubs: tuple[str, ...]) -> StateDict:
    refused = trainer_folders.refusal(path)
    if refused is not None:
        raise SelectionError(refused)
    chosen = trainer_folders.model_file(path)
    if chosen is None:
        indices, files = sorted(path.glob("*.index.json")), _weight_files(path)
        if len(indices) == 1 or (not indices and len(files) == 1):
            chosen = (indices or files)[0]
        else:
            raise CheckpointNotFoundError(
                f"{path}: expected one model file or one *.index.json, found {len(files)} files "
                f"and {len(indices)} indices; name the file"
            )
    if not chosen.name.endswith(".index.json"):
        state = open_state(chosen, wrapper=wrapper, stubs=stubs)
    else:
        state = _open_shards(chosen, wrapper, stubs)
    facts = {**_facts_beside(path), **state.facts}
    return dataclasses.replace(state, path=path, facts=facts)


def _open_shards(index: Path, wrapper: str | None, stubs: tuple[str, ...]) -> StateDict:
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{index}: expected a 'weight_map' of tensor names to files")
    shards: dict[str, StateDict] = {}
    for file in weight_map.values():
        # An index must not lead out of its own directory.
        if not isinstance(file, str) or Path(file).name != file or file in (".", ".."):
            raise CorruptCheckpointError(f"{index}: {file!r} is no plain file name")
    for file in dict.fromkeys(weight_map.values()):
        if len(file) > 255 or not (index.parent / file).is_file():
            raise CorruptCheckpointError(f"{index}: shard {file} is missing; copy it again")
        shards[file] = open_state(index.parent / file, wrapper=wrapper, stubs=stubs)
    for name, file in weight_map.items():
        if name not in shards[file].specs:
            raise CorruptCheckpointError(
                f"{index}: tensor {name!r} should be in {file}, which does not hold it; the shards "
                "belong to different checkpoints"
            )
    extra = [n for s in shards.values() for n in s.specs if n not in weight_map]
    if extra:
        raise CorruptCheckpointError(
            f"{index}: tensor {extra[0]!r} is in a shard but not in the index; the shards belong "
            "to different checkpoints"
        )
    shared = {name: first for state in shards.values() for name, first in state.shared.items()}
    return StateDict(
        index.parent,
        {name: shards[file].specs[name] for name, file in weight_map.items()},
        lambda name: shards[weight_map[name]].read(name),
        shared,
    )


def _facts_beside(path: Path) -> dict[str, Any]:
    """What Hugging Face wrote beside the model: the trainer's step, the model's configuration."""
    facts: dict[str, Any] = {}
    if (path / _TRAINER_STATE).is_file():
        step = _json(path / _TRAINER_STATE).get("global_step")
        if isinstance(step, int) and step > 0:
            facts["step"] = step
    if (path / _CONFIG).is_file():
        config = _json(path / _CONFIG)
        heads = config.get("num_attention_heads")
        if isinstance(heads, int) and heads > 0:
            facts["heads"] = heads
        settings = {k: config[k] for k in _SETTINGS if isinstance(config.get(k), str | int | float)}
        if settings:
            facts["settings"] = settings
    return facts


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path}: expected a JSON object")
    return content
