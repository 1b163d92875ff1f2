import argparse
import builtins
import collections
import datetime
import decimal
import functools
import os
import pickle
import sys
import uuid
import warnings
import zipfile
from collections import OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest
import torch

from lawa_jax.errors import (
    CorruptCheckpointError,
    MissingDependencyError,
    TreeMismatchError,
    UnsafePickleError,
)
from lawa_jax.trajectory.formats import torch_files

LEGACY = {"_use_new_zipfile_serialization": False}


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(tmp_path, content, **options):
    path = tmp_path / "file.pt"
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_reads_by_hand(tmp_path, options):
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    content = {"epoch": 3, "arch": "x", "best_acc1": torch.tensor([71.5]), "state_dict": {"a": a}}
    state = torch_files.read(saved(tmp_path, content, **options))
    assert state.wrapper == ("state_dict",)
    assert str(state.specs["a"]) == "float32[2,2]"
    np.testing.assert_array_equal(state.read("a"), [[1, 2], [3, 4]])
    assert state.facts == {"epoch": 3, "arch": "x", "metrics": {"val/top1_best": 71.5}}


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "uint8", "bool", "complex64"],
)
def test_dtypes_bit_for_bit(tmp_path, dtype):
    kind = getattr(torch, dtype)
    values = torch.tensor([0.0, 1.0, 3.0, 100.0]).to(kind)
    state = torch_files.read(saved(tmp_path, {"x": values, "scalar": values[1].clone()}))
    expected = np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert state.specs["x"].dtype == expected
    assert state.specs["scalar"].shape == () == state.read("scalar").shape
    np.testing.assert_array_equal(
        state.read("x").view(np.uint8), values.view(torch.uint8).numpy().reshape(-1)
    )
    assert torch_files.to_tensor(state.read("x")).dtype == kind


def test_nan_payloads_survive(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32)
    state = torch_files.read(saved(tmp_path, {"x": bits.view(torch.float32)}))
    np.testing.assert_array_equal(state.read("x").view(np.int32), bits.numpy())


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_known_strangers_become_inert(tmp_path, options):
    content = {
        "args": argparse.Namespace(encoder_attention_heads=12, out=argparse.Namespace(x=1)),
        "best_acc1": np.float64(66.5),
        "history": defaultdict(list, {"a": [1]}),
        "model": {"w": torch.ones(2)},
    }
    state = torch_files.read(saved(tmp_path, content, **options))
    assert state.facts["heads"] == 12
    assert state.facts["metrics"] == {"val/top1_best": 66.5}
    loaded = torch_files.load(tmp_path / "file.pt")
    assert type(loaded["args"]) is not argparse.Namespace
    assert loaded["args"]["out"]["x"] == 1
    assert loaded["history"] == OrderedDict(a=[1])


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (builtins.eval, ("open({!r}, 'w')",), "eval"),
        (builtins.exec, ("open({!r}, 'w')",), "exec"),
        (pickle.loads, (b"x",), r"_?pickle\.loads"),
    ],
)
def test_hostile_pickle_is_refused_by_name(tmp_path, options, function, arguments, name):
    trace = tmp_path / "trace"
    arguments = [a.format(str(trace)) if isinstance(a, str) else a for a in arguments]
    content = {"state_dict": {"w": torch.ones(2)}, "x": Hostile(function, *arguments)}
    path = saved(tmp_path, content, **options)
    with pytest.raises(UnsafePickleError, match=rf"refused.*{name}.*nothing was run"):
        torch_files.read(path)
    assert not trace.exists()


def test_stubs_only_where_asked_and_never_of_the_standard_library(tmp_path, monkeypatch):
    module = type(sys)("my_project.config")
    module.Config = type("Config", (), {"__module__": "my_project.config"})
    monkeypatch.setitem(sys.modules, "my_project", type(sys)("my_project"))
    monkeypatch.setitem(sys.modules, "my_project.config", module)
    config = module.Config()
    config.secret = 1
    path = saved(tmp_path, {"model": {"w": torch.ones(2)}, "config": config})
    with pytest.raises(UnsafePickleError, match=r"'my_project.config.Config'.*--stub"):
        torch_files.read(path)
    assert list(torch_files.read(path, stubs=["my_project."]).specs) == ["w"]
    assert torch_files.load(path, stubs=["my_project.config.Config"])["config"] == {"secret": 1}
    hostile = saved(tmp_path, {"w": torch.ones(2), "x": Hostile(os.getcwd)})
    with pytest.raises(UnsafePickleError, match="getcwd"):
        torch_files.read(hostile, stubs=["posix.", "nt.", "os."])


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "value",
    [
        torch.optim.Adam,
        torch.nn.functional.relu,
        torch.nn.functional.gelu,
        functools.partial(torch.optim.Adam, lr=1e-3),
        datetime.date(2026, 1, 2),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        frozenset({1, 2}),
        collections.deque([1, 2], maxlen=5),
        uuid.UUID(int=3),
        decimal.Decimal("1.5"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_harmless_objects_need_no_flag(tmp_path, options, value):
    content = {"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"x": value}}
    state = torch_files.read(saved(tmp_path, content, **options))
    assert list(state.specs) == ["w"]


def test_modules_among_the_hyperparameters_need_no_flag(tmp_path):
    parts = {"loss": torch.nn.MSELoss(), "head": torch.nn.Linear(2, 2)}
    state = torch_files.read(saved(tmp_path, {"state_dict": {"w": torch.ones(2)}, "x": parts}))
    assert list(state.specs) == ["w"]
    assert state.left_out == {"x": 2}


def test_old_files_with_modules_are_called_so(tmp_path):
    path = saved(tmp_path, {"w": torch.ones(2), "loss": torch.nn.MSELoss()}, **LEGACY)
    with pytest.raises(CorruptCheckpointError, match=r"pickled module.*save the state dict alone"):
        torch_files.read(path)


def test_advice_is_given_only_where_it_works(tmp_path):
    path = saved(tmp_path, {"w": torch.ones(2), "x": Hostile(os.getcwd)})
    with pytest.raises(UnsafePickleError, match="No stand-in can be used") as raised:
        torch_files.read(path)
    assert "--stub" not in str(raised.value)


def test_whole_files_are_not_called_truncated(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(CorruptCheckpointError, match="TorchScript") as raised:
        torch_files.read(tmp_path / "script.pt")
    assert "truncated" not in str(raised.value)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(CorruptCheckpointError, match=r"none that torch\.save wrote"):
        torch_files.read(tmp_path / "other.pt")


def test_the_message_proposes_a_wrapper_that_holds_tensors(tmp_path):
    w = {"w": torch.ones(1)}
    path = saved(tmp_path, {"optimizer": {"state": w}, "G": w, "D": {**w, "v": torch.ones(1)}})
    with pytest.raises(TreeMismatchError, match=r"G \(1 tensor\), D \(2 tensors\).*--wrapper G"):
        torch_files.read(path)
    assert torch_files.read(path, wrapper="G").left_out == {"optimizer": 1, "D": 2}


def test_shared_tensors_are_told(tmp_path):
    w = torch.arange(6.0)
    content = {"a": w, "b": w, "part": w[2:4], "whole": w.view(2, 3)}
    state = torch_files.read(saved(tmp_path, content))
    assert state.shared == {"b": "a"}
    np.testing.assert_array_equal(state.read("part"), [2, 3])


@pytest.mark.parametrize("keep", [0, 10, 400, 0.5, 0.99])
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_truncated_files(tmp_path, options, keep):
    path = saved(tmp_path, {"w": torch.randn(1000)}, **options)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptCheckpointError, match=r"file.pt.*truncated"):
        torch_files.read(path)


# Newer PyTorch says that checking a sparse tensor takes time.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("lr = 0.1\n" * 100)
    with pytest.raises(CorruptCheckpointError, match="not a PyTorch checkpoint"):
        torch_files.read(path)
    with pytest.raises(TreeMismatchError, match=r"found the keys epoch, lr.*--wrapper"):
        torch_files.read(saved(tmp_path, {"epoch": 1, "lr": 0.1}))
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(CorruptCheckpointError, match=r"'w'.*dense"):
        torch_files.read(saved(tmp_path, {"w": sparse}))


def test_wrappers(tmp_path):
    w = {"w": torch.ones(1)}
    ema = {"w": torch.zeros(1)}
    path = saved(tmp_path, {"model": w, "ema": ema, "optimizer": {"state": {}}})
    assert torch_files.read(path).wrapper == ("model",)
    assert torch_files.read(path, wrapper="ema").read("w")[0] == 0
    with pytest.raises(TreeMismatchError, match="no 'teacher'"):
        torch_files.read(path, wrapper="teacher")
    nested = saved(tmp_path, {"model": {"state_dict": w}})
    assert torch_files.read(nested).wrapper == ("model", "state_dict")
    assert torch_files.read(saved(tmp_path, w)).wrapper == ()


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lawa-jax\[convert\]'"):
        torch_files.read(tmp_path / "file.pt")


def test_a_later_pickle_protocol_is_no_damage(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(CorruptCheckpointError, match="protocol 4 or later"):
        torch_files.read(tmp_path / "w.pt")


def test_a_bit_that_flipped_is_an_error(tmp_path):
    path = saved(tmp_path, {"w": torch.zeros(1000), "v": torch.ones(3)})
    data = bytearray(path.read_bytes())
    place = data.index(bytes(2000))
    data[place + 1000] ^= 1
    path.write_bytes(data)
    state = torch_files.read(path)
    np.testing.assert_array_equal(state.read("v"), [1, 1, 1])
    with pytest.raises(CorruptCheckpointError, match="'w': its bytes changed"):
        state.read("w")
