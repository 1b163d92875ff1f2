import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from lawa_jax.errors import SelectionError
from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.trajectory import list_steps, open_checkpoint
from lawa_jax.trajectory.formats.huggingface import open_state

W = {"w": torch.arange(6.0).reshape(2, 3)}


def saved(path, content=W):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def converted(source, tmp_path, **options):
    convert_trajectory(source, tmp_path / "run", state_dicts.convert, ConvertOptions(**options))
    return list_steps(tmp_path / "run")


@pytest.mark.parametrize(
    "name",
    [
        *("adapter_model.bin", "diffusion_pytorch_model.bin", "pytorch_lora_weights.bin"),
        *("pytorch_model_fsdp.bin", "pytorch_model.bin"),
    ],
)
def test_the_model_among_a_trainers_files(tmp_path, name):
    for step in (500, 1000):
        folder = tmp_path / "source" / f"checkpoint-{step}"
        saved(folder / name)
        for other in ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"):
            saved(folder / other, {"state": {}, "param_groups": []})
    assert converted(tmp_path / "source", tmp_path) == [500, 1000]


def test_deepspeed(tmp_path):
    for step in (10, 20):
        folder = tmp_path / "source" / f"global_step{step}"
        saved(folder / "mp_rank_00_model_states.pt", {"module": W, "global_steps": step})
        saved(folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", {"optimizer": W})
    assert converted(tmp_path / "source", tmp_path) == [10, 20]
    saved(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", {"module": {}})
    with pytest.raises(SelectionError, match=r"ZeRO-3.*python zero_to_fp32.py"):
        open_state(folder)


def test_megatron(tmp_path):
    inner = {"language_model": {"embedding": {"word_embeddings": W}}}
    for step in (100, 200):
        folder = tmp_path / "source" / f"iter_{step:07d}"
        saved(folder / "mp_rank_00" / "model_optim_rng.pt", {"model": inner, "iteration": step})
    assert converted(tmp_path / "source", tmp_path) == [100, 200]
    leaf = "params/language_model/embedding/word_embeddings/w"
    assert list(open_checkpoint(tmp_path / "run").leaves) == [leaf]
    saved(folder / "mp_rank_01" / "model_optim_rng.pt", {"model": inner})
    with pytest.raises(SelectionError, match=r"2 parallel parts.*--target-tensor-parallel-size 1"):
        open_state(folder)


def test_nnunet(tmp_path):
    saved(
        tmp_path / "checkpoint_latest.pth",
        {"network_weights": W, "current_epoch": 50, "optimizer_state": {"state": W}},
    )
    assert converted(tmp_path / "checkpoint_latest.pth", tmp_path) == [49]


def test_several_models_ask_for_match(tmp_path):
    for step in (1, 2):
        for part in ("unet", "unet_ema"):
            folder = tmp_path / "source" / f"checkpoint-{step}"
            saved(folder / part / "diffusion_pytorch_model.bin")
    with pytest.raises(SelectionError, match=r"2 models \(unet, unet_ema\).*--match"):
        converted(tmp_path / "source", tmp_path)
    assert converted(tmp_path / "source", tmp_path, match="*/unet") == [1, 2]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_distributed_checkpoints_are_converted_as_the_message_says(tmp_path):
    source = tmp_path / "source"
    for step in (1, 2):
        state = {"model": {"w": W["w"] + step}}
        dcp.save(state, checkpoint_id=source / f"step_{step}", no_dist=True)
    with pytest.raises(SelectionError, match=r"python -m .* dcp_to_torch") as raised:
        converted(source, tmp_path)
    line = str(raised.value).partition(": python ")[2].split()
    for step in (1, 2):
        arguments = [a.replace("step_1", f"step_{step}") for a in line[:-1]]
        file = tmp_path / "files" / f"step_{step}.pt"
        file.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, *arguments, str(file)], check=True, capture_output=True)
    assert converted(tmp_path / "files", tmp_path) == [1, 2]
    found = open_checkpoint(tmp_path / "run", step=2).read_leaf("params/w")
    np.testing.assert_array_equal(found, W["w"] + 2)
