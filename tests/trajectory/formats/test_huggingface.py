import json

import numpy as np
import pytest
import torch

from lawa_jax.errors import CheckpointNotFoundError, CorruptCheckpointError, SelectionError
from lawa_jax.trajectory.formats import safetensors_files
from lawa_jax.trajectory.formats.huggingface import open_state


def shards(folder, weight_map=None, suffix="safetensors"):
    folder.mkdir()
    one, two = f"model-00001-of-00002.{suffix}", f"model-00002-of-00002.{suffix}"
    arrays = [{"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}]
    for name, part in zip((one, two), arrays, strict=True):
        if suffix == "bin":
            torch.save({k: torch.from_numpy(v) for k, v in part.items()}, folder / name)
        else:
            safetensors_files.write(folder / name, part, {})
    index = {"weight_map": weight_map or {"b": two, "a": one}}
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_directory(tmp_path, suffix):
    folder = shards(tmp_path / "step1000", suffix=suffix)
    (folder / "trainer_state.json").write_text('{"global_step": 1000, "epoch": 1.5}')
    state = open_state(folder)
    assert list(state.specs) == ["b", "a"]
    np.testing.assert_array_equal(state.read("a"), [1, 1])
    assert state.facts["step"] == 1000


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../evil.safetensors"}, "no plain file name"),
        ({"a": "model-00009-of-00009.safetensors"}, "shard .* is missing"),
        ({"a": "model-00002-of-00002.safetensors"}, "'a' should be in"),
        ({"a": "model-00001-of-00002.safetensors", "b": 3}, "no plain file name"),
        ({"a": {"b": "model-00001-of-00002.safetensors"}}, "no plain file name"),
    ],
)
def test_bad_indices(tmp_path, weight_map, message):
    with pytest.raises(CorruptCheckpointError, match=message):
        open_state(shards(tmp_path / "x", weight_map))


def test_missing(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        open_state(tmp_path / "none.pt")
    with pytest.raises(CheckpointNotFoundError, match="expected one model file"):
        open_state(tmp_path)


def test_what_hugging_face_wrote_beside(tmp_path):
    safetensors_files.write(tmp_path / "model.safetensors", {"w": np.ones(1, np.float32)}, {})
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    (tmp_path / "trainer_state.json").write_text('{"global_step": 500, "epoch": 1.5}')
    assert open_state(tmp_path).facts == {"heads": 4, "step": 500}


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint1.pt"])
def test_git_lfs_pointers_are_called_so(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CorruptCheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        open_state(tmp_path / name)


def test_a_wrapper_that_would_do_nothing(tmp_path):
    safetensors_files.write(tmp_path / "model.safetensors", {"w": np.ones(1, np.float32)}, {})
    with pytest.raises(SelectionError, match="leave --wrapper out"):
        open_state(tmp_path / "model.safetensors", wrapper="ema")
