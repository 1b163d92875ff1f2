"""Every format that is read from files nobody vouches for, mutated at random."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lawa_jax.averaging.window import parse_steps, share_of_run
from lawa_jax.cli.options import parse_bytes
from lawa_jax.errors import LawaError
from lawa_jax.interop import names
from lawa_jax.offline.journal import Journal
from lawa_jax.offline.recipe import split_weight
from lawa_jax.offline.record import read_record
from lawa_jax.output import write_checkpoint
from lawa_jax.search.results import Results
from lawa_jax.training import log, run_directory
from lawa_jax.trajectory import open_checkpoint, parse_address
from lawa_jax.trajectory.formats import safetensors_files
from lawa_jax.trajectory.formats.huggingface import open_state
from lawa_jax.trajectory.formats.zarr_header import parse_header
from tests.faults.scenarios import Broken

# What breaks readers that trust a type or a size.
_WORDS = (
    b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e308", b"1e999", b"NaN", b"Infinity",
    b"9223372036854775808", b"99999999999999999999999999", b"0.5", b"[" * 2000, b'"\\u0000"',
    b'"../../x"', b'"/etc"', b"\xff\xfe", b"\x00", b'"|O"', b'"<M8[ns]"', b"[[1]]",
)  # fmt: skip


class Target(NamedTuple):
    """A reader.

    Attributes:
      path: of the file it reads.
      healthy: a good content.
      read: called after the content was changed.
    """

    path: Path
    healthy: bytes
    read: Callable[[Path], Any]


def attack(work: Path, count: int, seed: int) -> dict[str, int]:
    """`count` mutations over all readers; outcomes by name.

    Raises:
      Broken: an error that is none of ours; says of what content.
    """
    generator = random.Random(seed)
    targets = _targets(work / "fuzzed")
    found = {"read": 0, "refused": 0}
    for _ in range(count):
        name = generator.choice(sorted(targets))
        target = targets[name]
        content = _mutated(target.healthy, generator)
        target.path.write_bytes(content)
        try:
            target.read(target.path)
            found["read"] += 1
        except LawaError:
            found["refused"] += 1
        except Exception as error:
            told = f"{type(error).__name__}: {str(error)[:300]}"
            raise Broken(f"{name}: {told} of {content[:300]!r}, seed {seed}") from error
        finally:
            target.path.write_bytes(target.healthy)
    return found


def _mutated(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        at = generator.randrange(len(changed) + 1)
        end = min(len(changed), at + generator.choice((0, 1, 2, 8, 64)))
        kind = generator.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[at:end]
        elif kind == 2:
            changed[at:at] = changed[at:end]
        else:
            _replace_token(changed, at, generator.choice(_WORDS))
    return bytes(changed)


def _replace_token(content: bytearray, at: int, word: bytes) -> None:
    """Put a word where a number, a text or a bracket was: most of what is left stays JSON."""
    ends = b',:[]{}" \n'
    start = stop = min(at, len(content))
    while start > 0 and content[start - 1] not in ends:
        start -= 1
    while stop < len(content) and content[stop] not in ends:
        stop += 1
    content[start:stop] = word


def _targets(folder: Path) -> dict[str, Target]:
    if not folder.exists():
        write_checkpoint(
            folder / "run" / "3",
            {"a": {"w": np.ones((2, 3), np.float32)}, "n": np.int64(3)},
            metrics={"val/loss": 0.5},
        )
        _write_others(folder)
    step = folder / "run" / "3"

    def opened(path: Path) -> None:
        checkpoint = open_checkpoint(step)
        assert checkpoint.checksums is not None
        assert checkpoint.metrics is not None
        checkpoint.read_tree()

    def text(parser: Callable[[str], Any]) -> Callable[[Path], Any]:
        return lambda path: parser(path.read_bytes().decode("utf8", "replace"))

    readers: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "zarr": (folder / "zarray", lambda path: parse_header(path.read_bytes(), "x")),
        "zarr3": (folder / "zarr.json", lambda path: parse_header(path.read_bytes(), "x")),
        "array": (step / "model" / "a.w" / ".zarray", opened),
        "tree": (step / "model" / "_METADATA", opened),
        "step": (step / "_CHECKPOINT_METADATA", opened),
        "metrics": (step / "metrics" / "metrics", opened),
        "checksums": (step / "checksums" / "metadata", opened),
        "record": (step / "record" / "metadata", lambda path: read_record(open_checkpoint(step))),
        "names": (folder / "names.json", names.load),
        "config": (folder / "config.json", lambda path: run_directory.read_config(path.parent)),
        "log": (folder / "log.jsonl", lambda path: list(log.read_log(path))),
        "results": (folder / "R" / "results.jsonl", lambda path: Results(path.parent, {}).close()),
        "journal": (folder / "J" / "journal.jsonl", lambda path: Journal(path.parent, {}).close()),
        "safetensors": (folder / "x.safetensors", _all_tensors),
        "shards": (folder / "hf" / "model.safetensors.index.json", lambda p: open_state(p.parent)),
        "address": (folder / "address", text(parse_address)),
        "weight": (folder / "weight", text(split_weight)),
        "steps": (folder / "steps", text(parse_steps)),
        "share": (folder / "share", text(lambda value: share_of_run(100, value))),
        "memory": (folder / "memory", text(parse_bytes)),
    }
    return {name: Target(path, path.read_bytes(), read) for name, (path, read) in readers.items()}


def _all_tensors(path: Path) -> None:
    state = safetensors_files.read(path)
    for name in state.specs:
        state.read(name)


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def _write_others(folder: Path) -> None:
    weight = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    (folder / "hf").mkdir()
    (folder / "hf" / "a.safetensors").write_bytes(_safetensors({"w": weight}, bytes(24)))
    zarr2 = {"shape": [2, 3], "chunks": [2, 3], "dtype": "<f4", "compressor": None, "order": "C",
             "fill_value": None, "filters": None, "zarr_format": 2}  # fmt: skip
    zarr3 = {
        "zarr_format": 3, "shape": [4], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [2]}}],
    }  # fmt: skip
    record = {
        "format": 2, "method": "uniform", "created": "", "taken_from_newest": [], "versions": {},
        "sources": [{"address": "r@1", "path": "/r/1", "relative": None, "step": 1, "weight": 1.0,
                     "digests": {"w": "0" * 16}}],
        "options": {"item": None, "include": [], "exclude": [], "dtype": None, "bn": "latest"},
    }  # fmt: skip
    entry = {"name": "w", "keys": ["w"], "layout": "same", "shape": [2], "dtype": "float32"}
    named = {"format": "lawa-names-v1", "tensors": [entry], "order": ["w"], "shared": {},
             "constants": {}, "ignored": [], "wrapper": []}  # fmt: skip
    row = {"name": "a", "end": 3, "k": 1, "method": "uniform", "steps": [3], "coefficients": [1.0],
           "metrics": {"loss": 1.0}, "seconds": 0.1, "key": "x"}  # fmt: skip
    block = {"block": ["w", 0], "read": [1], "written": [2]}
    files: dict[str, Any] = {
        "zarray": zarr2, "zarr.json": zarr3, "names.json": named,
        "config.json": {"arch": "resnet50", "epochs": 3}, "log.jsonl": {"event": "epoch", "x": 1},
        "hf/model.safetensors.index.json": {"weight_map": {"w": "a.safetensors"}},
        "run/3/record/metadata": record,
    }  # fmt: skip
    texts = {
        "address": "RUN@3", "weight": "RUN@3:0.25", "steps": "1:9:2,11", "share": "1.5%",
        "memory": "1.5GiB",
        "R/results.jsonl": json.dumps({"setting": {}}) + "\n" + json.dumps(row) + "\n",
        "J/journal.jsonl": json.dumps({"pass": "x"}) + "\n" + json.dumps(block) + "\n",
    }  # fmt: skip
    texts |= {name: json.dumps(content) for name, content in files.items()}
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "x.safetensors").write_bytes(
        _safetensors({"__metadata__": {"step": "3"}, "w": weight}, bytes(24))
    )
