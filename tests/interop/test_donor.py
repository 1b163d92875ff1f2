"""Averages in copies of a trainer's own file: everything but the weights stays as it was."""

import argparse
import shutil
import zipfile

import numpy as np
import pytest
import torch
import transformers

from lawa_jax.errors import SelectionError, TreeMismatchError
from lawa_jax.interop import fairseq_roberta, state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export_into
from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.trajectory.formats.huggingface import open_state


def content(epoch):
    w = torch.arange(6.0).reshape(2, 3) * epoch
    state = {"w": w, "tied": w, "turned": (w + 1).t(), "half": w.half(), "n": torch.tensor(epoch)}
    return {
        "args": argparse.Namespace(lr=0.1, arch="x"),
        "epoch": epoch,
        "model": state,
        "ema": {"w": w + 7},
        "optimizer": {"state": {0: {"exp_avg": w + 9}}},
    }


@pytest.fixture
def average(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for epoch in (1, 2, 3):
        torch.save(content(epoch), source / f"checkpoint{epoch}.pt")
    convert_trajectory(source, tmp_path / "run", state_dicts.convert, ConvertOptions())
    write_checkpoint(tmp_path / "average", average_checkpoints(tmp_path / "run", k=3))
    return open_checkpoint(tmp_path / "average", include=("*",))


def test_everything_but_the_weights_is_the_donors(tmp_path, average, capsys):
    donor = open_state(tmp_path / "source" / "checkpoint3.pt")
    export_into(average, tmp_path / "out.pt", donor, state_dicts.convert(donor).names)
    assert "as in the donor, not averaged: ema (1 tensor)" in capsys.readouterr().err
    assert zipfile.ZipFile(tmp_path / "out.pt").testzip() is None
    # As a trainer loads its own files.
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    wanted, middle = content(3), content(2)["model"]
    assert found["args"] == wanted["args"]
    assert found["epoch"] == 3
    assert torch.equal(found["ema"]["w"], wanted["ema"]["w"])
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], wanted["model"]["w"] + 9)
    model = found["model"]
    assert list(model) == list(wanted["model"])
    assert model["n"] == 3
    for name in ("w", "tied", "turned", "half"):
        assert model[name].dtype == middle[name].dtype
        assert torch.equal(model[name], middle[name])
    assert model["w"].data_ptr() == model["tied"].data_ptr()
    again = open_state(tmp_path / "out.pt")
    np.testing.assert_array_equal(again.read("w"), middle["w"])


def test_donors_that_cannot_be_used(tmp_path, average):
    other = {"model": {"x": torch.ones(1)}}
    torch.save(other, tmp_path / "other.pt")
    donor = open_state(tmp_path / "other.pt")
    with pytest.raises(TreeMismatchError):
        export_into(average, tmp_path / "out.pt", donor, state_dicts.convert(donor).names)
    torch.save(content(1), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    donor = open_state(tmp_path / "old.pt")
    with pytest.raises(SelectionError, match=r"before torch 1\.6"):
        export_into(average, tmp_path / "out.pt", donor, state_dicts.convert(donor).names)
    with pytest.raises(SelectionError, match="expected a file of the target's kind"):
        export_into(average, tmp_path / "out.safetensors", donor, state_dicts.convert(donor).names)
    assert not (tmp_path / "out.pt").exists()


def test_hugging_faces_loader_opens_it(tmp_path):
    config = transformers.RobertaConfig(
        **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 24, "max_position_embeddings": 22, "pad_token_id": 1},
    )
    model = transformers.RobertaForMaskedLM(config).eval()
    for step in (500, 1000):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += step / 10_000
        model.save_pretrained(tmp_path / "source" / f"checkpoint-{step}")
    run, out = tmp_path / "run", tmp_path / "out"
    convert_trajectory(tmp_path / "source", run, fairseq_roberta.convert, ConvertOptions())
    write_checkpoint(tmp_path / "average", average_checkpoints(run, k=2))
    shutil.copytree(tmp_path / "source" / "checkpoint-1000", out)
    donor = open_state(tmp_path / "source" / "checkpoint-1000" / "model.safetensors")
    average = open_checkpoint(tmp_path / "average", include=("*",))
    export_into(average, out / "model.safetensors", donor, fairseq_roberta.convert(donor).names)
    found, told = transformers.RobertaForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=1e-6)
