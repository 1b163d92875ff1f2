import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lawa_jax.errors import (
    CheckpointWriteError,
    CorruptCheckpointError,
    OutputExistsError,
    SelectionError,
    TreeMismatchError,
)
from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export, find_names
from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory.formats import torch_files


@pytest.fixture
def run(tmp_path, trajectory):
    convert_trajectory(trajectory(), tmp_path / "run", state_dicts.convert, ConvertOptions())
    return tmp_path / "run"


def load(path):
    return torch.load(path, weights_only=True)


def test_one_or_all(tmp_path, run):
    export(f"{run}@2", tmp_path / "two.pt")
    assert load(tmp_path / "two.pt")["epoch"] == 2
    assert load(tmp_path / "two.pt")["state_dict"]["module.a.count"] == 2
    export(str(run), tmp_path / "newest.pt")
    assert load(tmp_path / "newest.pt")["epoch"] == 4
    files = export(str(run), tmp_path / "all")
    assert [f.name for f in files] == [f"checkpoint{e}.pt" for e in (1, 2, 3, 4)]


def test_an_average_goes_back(tmp_path, run):
    write_checkpoint(tmp_path / "average", average_checkpoints(run, k=2, end=4))
    with pytest.raises(SelectionError, match=r"no names.json.*--names"):
        export(str(tmp_path / "average"), tmp_path / "average.pt")
    export(str(tmp_path / "average"), tmp_path / "average.pt", names=find_names(run))
    back = load(tmp_path / "average.pt")["state_dict"]
    assert torch.equal(back["module.a.weight"], torch.full((3, 2), 3.5))
    assert back["module.a.count"] == 4
    assert list(back) == ["module.a.weight", "module.a.count"]


def test_never_replaces_silently(tmp_path, run):
    export(f"{run}@2", tmp_path / "two.pt")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export(f"{run}@3", tmp_path / "two.pt")
    export(f"{run}@3", tmp_path / "two.pt", overwrite=True)
    assert load(tmp_path / "two.pt")["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_is_an_error_of_ours():
    arrays, order = {"w": np.ones(1 << 20, np.float32)}, ["w"]
    with pytest.raises(CheckpointWriteError, match="could not be written"):
        torch_files.write(
            Path("/dev/full"), arrays, order=order, shared={}, objects={}, wrapper=(), beside={}
        )


def test_another_models_names(tmp_path, run):
    write_checkpoint(tmp_path / "other", {"params": {"a": {"weight": torch.ones(3, 2).numpy()}}})
    with pytest.raises(TreeMismatchError, match=r"'params/a/count' is only in the record of names"):
        export(str(tmp_path / "other"), tmp_path / "x.pt", names=find_names(run))


def test_damage_is_noticed(tmp_path, run):
    chunk = run / "epochs" / "2" / "model" / "params.a.weight" / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptCheckpointError, match="bytes changed"):
        export(f"{run}@2", tmp_path / "two.pt")
    assert not (tmp_path / "two.pt").exists()
    (run / "names.json").write_text('{"format": 3}')
    with pytest.raises(CorruptCheckpointError, match="record of names"):
        export(f"{run}@3", tmp_path / "two.pt")
    damaged = {"format": "lawa-names-v1", "tensors": [{"name": "x"}]}
    (run / "names.json").write_text(json.dumps(damaged))
    with pytest.raises(CorruptCheckpointError, match="damaged record"):
        export(f"{run}@3", tmp_path / "two.pt")
