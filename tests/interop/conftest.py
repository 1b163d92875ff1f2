"""Made trajectories with the structure of the published ones, at toy sizes."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lawa_jax.interop.fairseq_roberta import expected_leaves, names_for
from lawa_jax.interop.torchvision_resnet import expected_shapes
from lawa_jax.tree import LeafSpec

ROBERTA = {"vocabulary": 30, "layers": 2, "width": 16, "ffn_width": 24, "rows": 12}


@pytest.fixture
def resnet_state():
    def make(arch="resnet18", classes=5, seed=0, prefix="module.", counters=True):
        generator = torch.Generator().manual_seed(seed)
        state = OrderedDict()
        for name, shape in expected_shapes(arch, classes, counters=counters).items():
            if name.endswith("tracked"):
                state[prefix + name] = torch.tensor(5005 * (seed + 1))
            else:
                state[prefix + name] = torch.randn(shape, generator=generator).abs()
        return state

    return make


@pytest.fixture
def roberta_state():
    """fairseq's state dict: a version buffer, and the output projection tied."""

    def make(seed=0, dtype=torch.float32, tied="shared"):
        generator = torch.Generator().manual_seed(seed)
        specs = {n: LeafSpec(s, np.dtype("float32")) for n, s in expected_leaves(**ROBERTA).items()}
        state = OrderedDict({"encoder.sentence_encoder.version": torch.tensor([3.0])})
        for entry in names_for(specs, "fairseq").entries:
            state[entry.name] = torch.randn(entry.shape, generator=generator).to(dtype)
        embedding = state["encoder.sentence_encoder.embed_tokens.weight"]
        if tied == "shared":
            state["encoder.lm_head.weight"] = embedding
        elif tied == "separate":
            state["encoder.lm_head.weight"] = embedding.clone()
        return state

    return make


@pytest.fixture
def fairseq_file():
    """Content of a fairseq checkpoint saved at the end of `epoch`."""

    def make(state, epoch):
        return {
            "args": argparse.Namespace(arch="roberta_base", encoder_attention_heads=2),
            "model": state,
            "optimizer_history": [{"criterion_name": "MaskedLmLoss"}],
            "extra_state": {
                "train_iterator": {"epoch": epoch + 1, "iterations_in_epoch": 0},
                "val_loss": 4.5,
            },
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.randn(300)}}},
        }

    return make


@pytest.fixture
def trajectory(tmp_path):
    """A folder of small checkpoints with a trainer's names, bare of any architecture."""

    def make(epochs=(1, 2, 3, 4), folder="source", shape=(3, 2)):
        source = tmp_path / folder
        source.mkdir()
        for epoch in epochs:
            state = {
                "module.a.weight": torch.full(shape, float(epoch)),
                "module.a.count": torch.tensor(epoch),
            }
            torch.save(
                {"epoch": epoch, "state_dict": state, "best_acc1": torch.tensor([50.0 + epoch])},
                source / f"checkpoint{epoch}.pt",
            )
        return source

    return make
