"""Converted checkpoints against PyTorch: same logits, same evaluation, same averages."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lawa_jax.interop import fairseq_roberta, torchvision_resnet
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.models.functional import functional
from lawa_jax.models.resnet import resnet
from lawa_jax.models.roberta import BASE, Roberta
from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.training.classification import classification_loss
from lawa_jax.training.steps import make_eval_step
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.tree import LeafSpec


def sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torch_resnet = sibling("torch_resnet")
torch_roberta = sibling("torch_roberta")
SIZES = {"layers": 2, "width": 16, "ffn_width": 40, "heads": 4, "max_tokens": 48}


def device(tree):
    return jax.tree.map(jnp.asarray, {k: v for k, v in tree.items() if k != "buffers"})


@pytest.fixture(scope="module")
def torch_network():
    torch.manual_seed(0)
    network = torch_resnet.TorchResNet((3, 4, 6, 3), (64, 128, 256, 512), True, classes=20)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def test_resnet50_logits_and_evaluation(tmp_path, torch_network):
    state = {f"module.{name}": t for name, t in torch_network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "checkpoint1.pt")
    convert_trajectory(
        tmp_path / "checkpoint1.pt",
        tmp_path / "run",
        lambda s: torchvision_resnet.convert(s, "resnet50"),
        ConvertOptions(),
    )
    model = device(open_checkpoint(tmp_path / "run", include=("*",)).read_tree())
    network = functional(lambda rngs: resnet("resnet50", num_classes=20, rngs=rngs))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 64, 64, 3)).astype(np.float32)
    labels = rng.integers(0, 20, 12)
    with torch.no_grad():
        theirs = torch_network(torch.from_numpy(x).permute(0, 3, 1, 2))
    ours, _ = network.apply(model, jnp.asarray(x))
    scale = float(theirs.abs().max())
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * max(1.0, scale), rtol=0)
    batch = {
        "image": jnp.asarray(x),
        "label": jnp.asarray(labels, jnp.int32),
    }
    metrics = make_eval_step(classification_loss(network))(model, batch)
    loss = torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels), reduction="sum")
    np.testing.assert_allclose(metrics["loss"][0], loss.item(), rtol=1e-5)
    assert int(metrics["top1"][0]) == int((theirs.argmax(1).numpy() == labels).sum())


def roberta_state(sizes, vocabulary, seed=0, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    shapes = fairseq_roberta.expected_leaves(
        vocabulary, sizes["layers"], sizes["width"], sizes["ffn_width"], sizes["max_tokens"] + 2
    )
    specs = {name: LeafSpec(s, np.dtype("float32")) for name, s in shapes.items()}
    state = {}
    for entry in fairseq_roberta.names_for(specs, "fairseq").entries:
        state[entry.name] = scale * torch.randn(entry.shape, generator=generator)
        if "norm" in entry.name and entry.name.endswith("weight"):
            state[entry.name] += 1
    return state


def compare_roberta(tmp_path, sizes, vocabulary, length, half, scale):
    state = roberta_state(sizes, vocabulary, scale=scale)
    if half:
        state = {name: t.half() for name, t in state.items()}
    torch.save({"model": state}, tmp_path / "checkpoint1.pt")
    convert_trajectory(
        tmp_path / "checkpoint1.pt",
        tmp_path / "run",
        lambda s: fairseq_roberta.convert(s, sizes["heads"]),
        ConvertOptions(),
    )
    model = device(open_checkpoint(tmp_path / "run").read_tree())
    network = functional(lambda rngs: Roberta(vocab_size=vocabulary, **sizes, rngs=rngs))
    tokens = np.random.default_rng(1).integers(4, vocabulary, (2, length)).astype(np.int32)
    tokens[1, length // 2 :] = 1
    # Evaluation upcasts: half-precision weights, float32 arithmetic.
    wide = {name: t.float() for name, t in state.items()}
    with torch.no_grad():
        theirs = torch_roberta.forward(wide, torch.from_numpy(tokens).long(), sizes["heads"])
    ours, _ = network.apply(model, jnp.asarray(tokens))
    real = tokens != 1
    scale = float(theirs.abs().max())
    np.testing.assert_allclose(
        np.asarray(ours)[real], theirs.numpy()[real], atol=1e-4 * max(1.0, scale), rtol=0
    )
    targets = torch.from_numpy(np.where(real, tokens, 1)).long().flatten()
    losses = [
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=1, reduction="sum"
        ).item()
        for logits in (theirs, torch.from_numpy(np.array(ours)))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_roberta_logits(tmp_path, half):
    compare_roberta(tmp_path, SIZES, 60, 20, half, 0.4)


@pytest.mark.slow
def test_roberta_base_logits(tmp_path):
    compare_roberta(tmp_path, BASE, 50_265, 64, False, 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_averages_equal_torchs_in_float64(tmp_path, dtype):
    source = tmp_path / "source"
    source.mkdir()
    states = [
        {n: t.to(dtype) for n, t in roberta_state(SIZES, 60, seed).items()} for seed in range(5)
    ]
    for epoch, state in enumerate(states, 1):
        torch.save({"model": state}, source / f"checkpoint{epoch}.pt")
    convert_trajectory(source, tmp_path / "run", fairseq_roberta.convert, ConvertOptions())
    ours = average_checkpoints(tmp_path / "run", k=5)
    kernel = "encoder.sentence_encoder.layers.1.fc1.weight"
    for name, array in (
        (kernel, ours["params"]["layers"]["1"]["fc1"]["kernel"].T),
        ("encoder.lm_head.bias", ours["params"]["lm_head"]["bias"]),
    ):
        mean = torch.stack([state[name].double() for state in states]).mean(0).to(dtype)
        np.testing.assert_array_max_ulp(array, mean.numpy(), maxulp=1)


def test_integer_buffers_are_the_newest(tmp_path, torch_network):
    source = tmp_path / "source"
    source.mkdir()
    for epoch in (1, 2, 3):
        state = {name: t.clone() for name, t in torch_network.state_dict().items()}
        state["bn1.num_batches_tracked"] += epoch
        state["fc.bias"] += epoch
        torch.save({"epoch": epoch, "state_dict": state}, source / f"checkpoint{epoch}.pt")
    convert_trajectory(
        source, tmp_path / "run", lambda s: torchvision_resnet.convert(s, "auto"), ConvertOptions()
    )
    average = average_checkpoints(tmp_path / "run", k=3)
    assert average["buffers"]["bn1"]["num_batches_tracked"] == 3
    bias = torch_network.state_dict()["fc.bias"]
    stack = torch.stack([(bias + e).double() for e in (1, 2, 3)]).mean(0).float()
    np.testing.assert_array_max_ulp(average["params"]["fc"]["bias"], stack.numpy(), maxulp=1)
