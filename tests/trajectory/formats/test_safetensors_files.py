import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats import safetensors_files

ARRAYS = {
    "b": np.arange(3, dtype=np.float16),
    "a": np.arange(6, dtype=np.float64).reshape(2, 3),
    "bf": np.arange(4).astype(ml_dtypes.bfloat16),
    "flag": np.asarray(True),
    "empty": np.zeros((0, 4), np.int64),
}


def test_what_safetensors_wrote(tmp_path):
    tensors = {
        "z": torch.randn(3, 4),
        "a": torch.randn(5).bfloat16(),
        "i": torch.tensor(7),
    }
    safetensors.torch.save_file(tensors, tmp_path / "f.safetensors", {"epoch": "12"})
    state = safetensors_files.read(tmp_path / "f.safetensors")
    assert state.facts == {"epoch": 12}
    for name, tensor in tensors.items():
        bits = state.read(name).tobytes()
        assert bits == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert state.specs[name].shape == tuple(tensor.shape)


def test_safetensors_reads_what_we_wrote(tmp_path):
    path = tmp_path / "f.safetensors"
    safetensors_files.write(path, ARRAYS, {"format": "pt"})
    theirs = safetensors.torch.load_file(path)
    ours = safetensors_files.read(path)
    assert list(ours.specs) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert ours.read(name).tobytes() == array.tobytes()
        assert tuple(theirs[name].shape) == array.shape
        assert theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("keep", [0, 4, 20, 0.9])
def test_truncated(tmp_path, keep):
    path = tmp_path / "f.safetensors"
    safetensors_files.write(path, {"w": np.ones(500)}, {})
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        safetensors_files.read(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"'w'.*takes 8 bytes, found 4"),
        ({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, "expected dtype"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}, "'w'"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "'w'"),
        ("text", "expected dtype"),
    ],
)
def test_headers_that_lie(tmp_path, entry, message):
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CorruptCheckpointError, match=message):
        safetensors_files.read(path)
