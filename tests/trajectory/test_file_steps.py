from pathlib import Path

import pytest

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory.file_steps import (
    NumberedFile,
    check_epoch,
    discover,
    epoch_in_name,
    missing_between,
    parse_epochs,
)


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("checkpoint12.pt", 12),
        ("epoch_3.pth", 3),
        ("epoch=3-step=900.ckpt", 3),
        ("model-00012.safetensors", 12),
        ("step1000", 1000),
        ("checkpoint-500", 500),
        ("ckpt_7.pth.tar", 7),
        ("0005.pt", 5),
        ("checkpoint_best.pt", None),
        ("checkpoint_3_1000.pt", None),
        ("model-00001-of-00005.safetensors", None),
        ("resnet20-12fca82f.th", None),
        ("resnet50.pt", None),
    ],
)
def test_epoch_in_name(name, epoch):
    assert epoch_in_name(name) == epoch


def test_parse_epochs():
    assert parse_epochs("26:90") == (26, 90)
    assert parse_epochs("30") == (30, 30)
    assert parse_epochs(":90") == (0, 90)
    assert parse_epochs("26:")[0] == 26
    for text in ("90:26", "a:b", ":", "", "1:2:3", "-3:4"):
        with pytest.raises(SelectionError, match="--epochs"):
            parse_epochs(text)


def test_missing_between():
    assert missing_between([1, 2, 4]) == (3,)
    assert missing_between([10, 20, 40, 50]) == (30,)
    assert missing_between([5]) == missing_between([1, 100]) == ()


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def found(source, facts=None, **options):
    return discover(source, facts=lambda path: (facts or {}).get(path.name, {}), **options)


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
    assert "checkpoint_last.pt: its epoch 4 is checkpoint4.pt" in result.ignored
    assert "checkpoint_1_500.pt: saved in mid-epoch 1, after 500 updates" in result.ignored
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
    with pytest.raises(SelectionError, match=r"twice: checkpoint2.pt and epoch_2.pth"):
        found(source)


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
    assert check_epoch(NumberedFile(1000, Path("step1000")), {"epoch": 3}, None) is None
    with pytest.raises(SelectionError, match="name says epoch 5, its content says 9"):
        check_epoch(file, {"epoch": 9}, None)
    with pytest.raises(SelectionError, match="the others differ by 1"):
        check_epoch(file, {"epoch": 5}, 1)


def test_a_date_in_a_name_is_no_epoch(tmp_path):
    names = ["checkpoint1.pt", "checkpoint2.pt", "checkpoint3.pt", "model-202401011230.pt"]
    source = folder(tmp_path, *names)
    with pytest.raises(SelectionError, match=r"202401011230 is model-202401011230.pt.*--epochs"):
        found(source)
    assert [f.epoch for f in found(source, epochs=(1, 3)).checkpoints] == [1, 2, 3]
    with pytest.raises(SelectionError, match="too far apart"):
        found(source, epochs=(1, 20_000_000_000))


def test_the_best_is_a_copy_of_one_of_the_others(tmp_path):
    # As PyTorch's ImageNet example saves: files state the epoch to do next.
    names = [f"checkpoint_{epoch}.pth.tar" for epoch in range(4)]
    facts = {name: {"epoch": epoch + 1} for epoch, name in enumerate(names)}
    source = folder(tmp_path, *names, "model_best.pth.tar")
    result = found(source, {**facts, "model_best.pth.tar": {"epoch": 4}})
    assert [f.epoch for f in result.checkpoints] == [0, 1, 2, 3]
    assert "model_best.pth.tar: its epoch 3 is checkpoint_3.pth.tar" in result.ignored
