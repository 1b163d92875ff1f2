import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export, find_names
from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.trajectory.formats import torch_files

ODD = ["a", "a.b", "a.b.c", "a/b", "a..b", ".", "", "a.", "%2F", "%=", "%0", "params", "A", "ä.1"]


def test_dots_become_levels():
    assert state_dicts.keys_of(["a.weight", "a.0.b"]) == {
        "a.weight": ("params", "a", "weight"),
        "a.0.b": ("params", "a", "0", "b"),
    }


@hypothesis.given(st.lists(st.text("ab.%/=02F", max_size=6) | st.sampled_from(ODD), unique=True))
def test_any_names_have_keys_of_their_own(names):
    keys = state_dicts.keys_of(names)
    assert list(keys) == names
    paths = set(keys.values())
    assert len(paths) == len(names)
    folders = {".".join(path) for path in paths}
    assert len(folders) == len(names)
    assert not any("/" in key or not key for path in paths for key in path)
    assert not any(p[:d] in paths for p in paths for d in range(1, len(p)))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_odd_names_order_dtypes_and_sharing_survive(tmp_path, suffix):
    shared = torch.randn(4, 2)
    state = {name: torch.randn(2, i) for i, name in enumerate(reversed(ODD))}
    state |= {
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "n": torch.tensor(3),
    }
    state |= {"tied": shared, "also": shared, "strided": torch.randn(3, 5).t()}
    torch.save(state, tmp_path / "weights.pt")
    convert_trajectory(
        tmp_path / "weights.pt", tmp_path / "run", state_dicts.convert, ConvertOptions(verify=True)
    )
    export(str(tmp_path / "run"), tmp_path / f"back{suffix}")
    if suffix == ".pt":
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert list(back) == list(state)
        assert back["tied"].data_ptr() == back["also"].data_ptr()
    else:
        import safetensors.torch

        back = safetensors.torch.load_file(tmp_path / "back.safetensors")
        assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    leaves = open_checkpoint(tmp_path / "run", include=("*",)).leaves
    assert sum(name.endswith(("tied", "also")) for name in leaves) == 1


def test_every_leaf_is_selected_by_default(tmp_path):
    """`lawa` chooses parameters by name; a module called "model" must not hide its siblings."""
    torch.save({"model.w": torch.ones(1), "lm_head.w": torch.ones(1)}, tmp_path / "w.pt")
    convert_trajectory(tmp_path / "w.pt", tmp_path / "run", state_dicts.convert, ConvertOptions())
    assert len(open_checkpoint(tmp_path / "run").leaves) == 2


def test_plain_entries_are_kept(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1), "scale": 3, "x": [1]}}, tmp_path / "w.pt")
    state = torch_files.read(tmp_path / "w.pt")
    assert state.objects == {"scale": 3}
    assert state_dicts.convert(state).names.ignored == ("x",)
    convert_trajectory(tmp_path / "w.pt", tmp_path / "run", state_dicts.convert, ConvertOptions())
    export(str(tmp_path / "run"), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert back["scale"] == 3
    np.testing.assert_array_equal(back["w"], [1])


def test_plain_entries_of_an_average_are_left_out(tmp_path, capsys):
    torch.save({"w": torch.ones(1), "version": 3, "v": torch.zeros(2)}, tmp_path / "w.pt")
    convert_trajectory(tmp_path / "w.pt", tmp_path / "run", state_dicts.convert, ConvertOptions())
    write_checkpoint(tmp_path / "average", average_checkpoints(tmp_path / "run", k=1))
    export(str(tmp_path / "average"), tmp_path / "back.pt", names=find_names(tmp_path / "run"))
    assert list(torch.load(tmp_path / "back.pt", weights_only=True)) == ["w", "v"]
    assert "plain entries left out: version" in capsys.readouterr().err
