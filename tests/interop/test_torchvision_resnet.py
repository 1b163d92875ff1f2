import jax
import numpy as np
import pytest
import torch

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop import torchvision_resnet
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export
from lawa_jax.interop.rules import shape_as_ours, to_ours
from lawa_jax.models.functional import functional
from lawa_jax.models.resnet import ARCHITECTURES
from lawa_jax.models.resnet import resnet as network
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.trajectory.formats import torch_files
from lawa_jax.tree import named_leaves


def opened(tmp_path, state, **content):
    torch.save({"state_dict": state, **content}, tmp_path / "checkpoint1.pt")
    return torch_files.read(tmp_path / "checkpoint1.pt")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_leaf_of_the_model_and_no_other(arch):
    model = functional(lambda rngs: network(arch, num_classes=7, rngs=rngs))
    wanted = {
        name: leaf.shape
        for name, leaf in named_leaves(jax.eval_shape(lambda: model.init(0))).items()
    }
    found = {}
    for name, shape in torchvision_resnet.expected_shapes(arch, 7, counters=False).items():
        match = to_ours(torchvision_resnet.RULES, name)
        found[match.name] = shape_as_ours(shape, match.layout)
    assert found == wanted


# The deeper ones repeat the names of these; see the test above.
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_round_trip(tmp_path, resnet_state, arch):
    state = resnet_state(arch)
    source = tmp_path / "checkpoint1.pt"
    content = {"epoch": 1, "arch": arch, "state_dict": state, "best_acc1": torch.tensor([61.5])}
    torch.save(content, source)
    run = tmp_path / "run"
    convert_trajectory(
        source, run, lambda s: torchvision_resnet.convert(s, arch), ConvertOptions(verify=True)
    )
    checkpoint = open_checkpoint(run, step=1)
    assert checkpoint.metrics == {"epoch": 1, "val/top1_best": 61.5}
    assert checkpoint.leaves["params/conv1/kernel"].shape == (7, 7, 3, 64)
    counter = checkpoint.read_leaf("buffers/bn1/num_batches_tracked")
    assert counter.dtype == np.int64
    assert counter == 5005
    export(f"{run}@1", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["epoch"] == 1
    assert list(back["state_dict"]) == list(state)
    assert all(torch.equal(back["state_dict"][n], t) for n, t in state.items())
    assert all(back["state_dict"][n].dtype == t.dtype for n, t in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet101", "resnet152"])
def test_round_trip_of_the_deepest(tmp_path, resnet_state, arch):
    test_round_trip(tmp_path, resnet_state, arch)


def test_values_by_hand(tmp_path, resnet_state):
    state = resnet_state()
    weight = state["module.layer2.0.downsample.0.weight"]
    source = opened(tmp_path, state)
    names = torchvision_resnet.convert(source, "resnet18").names
    run = tmp_path / "run"
    convert_trajectory(
        source.path, run, lambda s: torchvision_resnet.convert(s, "auto"), ConvertOptions()
    )
    kernel = open_checkpoint(run).read_leaf("params/layer2/0/downsample/conv/kernel")
    assert kernel[0, 0, 5, 9] == weight[9, 5, 0, 0]
    assert len(names.entries) == len(state)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_prefixes_and_files_without_counters(tmp_path, resnet_state, prefix):
    state = resnet_state(prefix=prefix, counters=False)
    plan = torchvision_resnet.convert(opened(tmp_path, state), "resnet18")
    assert plan.model == {"arch": "resnet18", "num_classes": 5, "in_channels": 3}
    assert not any(leaf.startswith("buffers") for leaf in plan.names.specs)


def test_wrong_architecture(tmp_path, resnet_state):
    source = opened(tmp_path, resnet_state("resnet34"))
    with pytest.raises(
        TreeMismatchError,
        match=r"is no resnet50: 'layer1.0.conv3.weight' is missing.*more.*looks like resnet34: "
        r"say --arch resnet34",
    ):
        torchvision_resnet.convert(source, "resnet50")
    assert torchvision_resnet.convert(source, "auto").model["arch"] == "resnet34"


def test_broken_files(tmp_path, resnet_state):
    state = resnet_state()
    del state["module.layer3.1.bn2.running_var"]
    with pytest.raises(TreeMismatchError, match=r"'layer3.1.bn2.running_var' is missing\. "):
        torchvision_resnet.convert(opened(tmp_path, state), "resnet18")
    state = resnet_state()
    state["module.extra.weight"] = torch.ones(1)
    with pytest.raises(TreeMismatchError, match=r"'extra.weight' is not expected"):
        torchvision_resnet.convert(opened(tmp_path, state), "resnet18")
    state = resnet_state()
    state["module.bn1.weight"] = torch.ones(3)
    with pytest.raises(TreeMismatchError, match=r"'bn1.weight' has shape \[3\], expected \[64\]"):
        torchvision_resnet.convert(opened(tmp_path, state), "resnet18")
    with pytest.raises(
        TreeMismatchError, match=r"'conv1.weight' is missing;.*convert/state_dicts.py converts any"
    ):
        torchvision_resnet.convert(opened(tmp_path, {"w": torch.ones(1)}), "auto")


def test_a_stated_architecture_that_differs_is_noted(tmp_path, resnet_state):
    source = opened(tmp_path, resnet_state(), arch="resnet50")
    notes = torchvision_resnet.convert(source, "resnet18").notes
    assert notes == ("the file says arch 'resnet50', its tensors say resnet18",)


def test_names_for_a_run_trained_here():
    expected = torchvision_resnet.expected_shapes("resnet50", 7)
    plan = {}
    for name, shape in reversed(expected.items()):
        match = to_ours(torchvision_resnet.RULES, name)
        plan[match.name] = _spec(shape_as_ours(shape, match.layout))
    names = torchvision_resnet.names_for(plan)
    assert {e.name: e.shape for e in names.entries} == expected
    assert list(names.order) == list(expected)
    with pytest.raises(TreeMismatchError, match="'params/other' is no ResNet's"):
        torchvision_resnet.names_for({"params/other": _spec((1,))})


def _spec(shape):
    from lawa_jax.tree import LeafSpec

    return LeafSpec(shape, np.dtype("float32"))
