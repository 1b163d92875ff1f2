from pathlib import Path

import numpy as np
import pytest

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory.file_steps import (
    NumberedFile,
    check_epoch,
    discover,
    parse_epochs,
)
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec


def test_parse_epochs():
    assert parse_epochs("26:90") == (26, 90)
    assert parse_epochs("30") == (30, 30)
    assert parse_epochs(":90") == (0, 90)
    assert parse_epochs("26:")[0] == 26
    for text in ("90:26", "a:b", ":", "", "1:2:3", "-3:4"):
        with pytest.raises(SelectionError, match="--epochs"):
            parse_epochs(text)


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def found(source, facts=None, weights=None, **options):
    """`facts` and `weights` by file name; files of no weights given have each their own."""

    def opened(path):
        value = (weights or {}).get(path.name, path.name.encode())
        array = np.frombuffer(value.ljust(64), np.uint8)
        specs = {"w": LeafSpec(array.shape, array.dtype)}
        return StateDict(path, specs, lambda _: array, facts=(facts or {}).get(path.name, {}))

    return discover(source, opened=opened, **options)


def test_selection(tmp_path):
    source = folder(tmp_path, *(f"checkpoint{e}.pt" for e in range(1, 11)), "train.log")
    everything = found(source)
    assert [f.epoch for f in everything.checkpoints] == list(range(1, 11))
    assert everything.ignored == ("train.log: no checkpoint",)
    assert [f.epoch for f in found(source, epochs=(3, 9), every=3).checkpoints] == [3, 6, 9]
    assert found(source, epochs=(8, 12)).missing == (11, 12)
    with pytest.raises(SelectionError, match="it has 1 to 10"):
        found(source, epochs=(20, 30))
    with pytest.raises(SelectionError, match="--every"):
        found(source, every=0)


def test_gaps_duplicates_and_the_rest(tmp_path):
    names = ["checkpoint1.pt", "checkpoint2.pt", "checkpoint4.pt", "checkpoint_last.pt"]
    source = folder(tmp_path, *names, "checkpoint_1_500.pt", "checkpoint_other.pt")
    result = found(source, {"checkpoint_last.pt": {"epoch": 5, "completed": False}})
    assert result.missing == (3,)
    assert "checkpoint_last.pt: its epoch 4 is checkpoint4.pt, whose weights differ" in (
        result.ignored
    )
    assert "checkpoint_1_500.pt: saved in mid-epoch 1, after 500 updates (--by step takes it)" in (
        result.ignored
    )
    assert any("checkpoint_other.pt: neither" in text for text in result.ignored)
    assert [f.epoch for f in found(source, {"checkpoint_last.pt": {"epoch": 3}}).checkpoints] == [
        *(1, 2, 3, 4)
    ]
    # fairseq saves checkpoint_last.pt in mid-epoch too.
    last = {"checkpoint_last.pt": {"epoch": 5, "completed": True, "updates_in_epoch": 37}}
    result = found(source, last)
    assert [f.epoch for f in result.checkpoints] == [1, 2, 4]
    assert "checkpoint_last.pt: saved in mid-epoch 5, after 37 updates" in result.ignored
    folder(tmp_path, "epoch_2.pth")
    with pytest.raises(SelectionError, match=r"checkpoint2.pt, epoch_2.pth.*--match 'check"):
        found(source)
    assert [f.epoch for f in found(source, match="epoch_*").checkpoints] == [2]


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoints.*a.txt"):
        found(folder(tmp_path, "a.txt"))
    with pytest.raises(CheckpointNotFoundError, match="no such"):
        found(tmp_path / "none")


def test_epochs_of_name_and_content():
    file = NumberedFile(5, Path("checkpoint5.pt"))
    assert check_epoch(file, {"epoch": 5}, None) == 0
    assert check_epoch(file, {"epoch": 6}, None) == 1
    assert check_epoch(file, {"epoch": 6, "completed": False}, None) == 0
    assert check_epoch(file, {}, 1) == 1
    assert (
        check_epoch(NumberedFile(1000, Path("step1000"), unit="step"), {"epoch": 3}, None) is None
    )
    with pytest.raises(SelectionError, match="name says epoch 5, its content says 9"):
        check_epoch(file, {"epoch": 9}, None)
    with pytest.raises(SelectionError, match="the others differ by 1"):
        check_epoch(file, {"epoch": 5}, 1)


def test_too_far_apart(tmp_path):
    names = ["checkpoint1.pt", "checkpoint2.pt", "checkpoint3.pt", "checkpoint99912345678.pt"]
    source = folder(tmp_path, *names)
    with pytest.raises(SelectionError, match=r"99912345678 is checkpoint99912345678.pt.*--epochs"):
        found(source)
    assert [f.epoch for f in found(source, epochs=(1, 3)).checkpoints] == [1, 2, 3]
    with pytest.raises(SelectionError, match="too far apart"):
        found(source, epochs=(1, 20_000_000_000))


def test_the_best_is_a_copy_of_one_of_the_others(tmp_path):
    # As PyTorch's ImageNet example saves: files state the epoch to do next.
    names = [f"checkpoint_{epoch}.pth.tar" for epoch in range(4)]
    facts = {name: {"epoch": epoch + 1} for epoch, name in enumerate(names)}
    source = folder(tmp_path, *names, "model_best.pth.tar")
    facts["model_best.pth.tar"] = {"epoch": 4}
    result = found(source, facts, {"model_best.pth.tar": b"checkpoint_3.pth.tar"})
    assert [f.epoch for f in result.checkpoints] == [0, 1, 2, 3]
    assert result.ignored == ("model_best.pth.tar: a copy of checkpoint_3.pth.tar",)
    # One that says nothing of its epoch is known by its weights all the same.
    del facts["model_best.pth.tar"]
    result = found(source, facts, {"model_best.pth.tar": b"checkpoint_1.pth.tar"})
    assert result.ignored == ("model_best.pth.tar: a copy of checkpoint_1.pth.tar",)


def numbers(result):
    return [file.epoch for file in result.checkpoints]


def test_values_in_names_are_no_epochs(tmp_path):
    names = ["best-val_loss=0.0785.ckpt", "best-val_loss=0.0838.ckpt", "best-val_loss=0.0900.ckpt"]
    source = folder(tmp_path, *names)
    epochs = dict(zip(names, (12, 9, 4), strict=True))
    result = found(source, {name: {"epoch": epoch} for name, epoch in epochs.items()})
    assert numbers(result) == [4, 9, 12]
    assert result.missing == ()
    assert "best-val_loss=0.0785.ckpt is epoch 12: its content says epoch 12" in result.notes
    with pytest.raises(CheckpointNotFoundError, match="neither its name nor its content"):
        found(source)


def test_content_decides_before_a_doubtful_name(tmp_path):
    source = folder(tmp_path, "run_7.pt", "run_8.pt")
    assert numbers(found(source)) == [7, 8]
    facts = {"run_7.pt": {"epoch": 70}, "run_8.pt": {"epoch": 80}}
    assert numbers(found(source, facts)) == [70, 80]
    assert numbers(found(source, {**facts, "run_8.pt": {"epoch": 80, "completed": False}})) == [
        *(70, 79)
    ]


def test_averages_are_no_epochs(tmp_path):
    names = [f"{epoch}.pt" for epoch in range(5)] + ["avg_5.pt", "swa_9.pt", "epoch-4-avg-3.pt"]
    source = folder(tmp_path, *names)
    result = found(source)
    assert numbers(result) == [0, 1, 2, 3, 4]
    assert "avg_5.pt: an average of checkpoints, no epoch" in result.ignored
    assert numbers(found(source, match="avg_*")) == [5]


def test_several_series_ask_for_match(tmp_path):
    source = folder(tmp_path, "G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth")
    with pytest.raises(SelectionError, match=r"several models.*--match 'D_\*.pth'"):
        found(source)
    assert numbers(found(source, match="G_*")) == [1, 2]
    with pytest.raises(CheckpointNotFoundError, match="nothing in it matches --match 'E"):
        found(source, match="E_*")
    (tmp_path / "ema").mkdir()
    names = ["model1.pt", "model2.pt", "ema_0.99_1.pt", "ema_0.99_2.pt"]
    with pytest.raises(SelectionError, match="--match"):
        found(folder(tmp_path / "ema", *names))


def test_steps_where_an_epoch_has_several_checkpoints(tmp_path):
    names = ["epoch=0-step=100.ckpt", "epoch=0-step=200.ckpt", "epoch=1-step=300.ckpt"]
    result = found(folder(tmp_path, *names))
    assert numbers(result) == [100, 200, 300]
    assert {file.unit for file in result.checkpoints} == {"step"}
    assert "numbered by step, since" in result.notes[0]
    with pytest.raises(SelectionError, match="epoch 0 is there twice"):
        found(tmp_path, by="epoch")


def test_by_step_and_both(tmp_path):
    source = folder(tmp_path, "checkpoint1.pt", "checkpoint2.pt", "checkpoint_1_50.pt")
    facts = {f"checkpoint{e}.pt": {"epoch": e, "step": 100 * e} for e in (1, 2)}
    assert numbers(found(source, facts)) == [1, 2]
    assert numbers(found(source, facts, by="step")) == [50, 100, 200]
    both = tmp_path / "both"
    both.mkdir()
    folder(both, "epoch_1.pt", "step_50.pt")
    with pytest.raises(SelectionError, match="--by step or --by epoch"):
        found(both)
    assert numbers(found(both, by="epoch")) == [1]


def test_a_second_save_of_the_same_step(tmp_path):
    source = folder(tmp_path, "epoch=3-step=900.ckpt", "epoch=3-step=900-v1.ckpt")
    copies = {"epoch=3-step=900-v1.ckpt": b"epoch=3-step=900.ckpt"}
    result = found(source, weights=copies)
    assert result.ignored == ("epoch=3-step=900-v1.ckpt: a copy of epoch=3-step=900.ckpt",)
    with pytest.raises(SelectionError, match="--match"):
        found(source)


def test_the_best_few_leave_no_gaps(tmp_path):
    names = [f"checkpoint-{e}.pth.tar" for e in (1, 2, 3, 7, 8, 9)]
    assert found(folder(tmp_path, *names)).missing == ()
