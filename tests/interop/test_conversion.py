import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

import lawa_jax.interop.epoch_writer as epoch_writer
from lawa_jax.errors import (
    CheckpointNotFoundError,
    CheckpointWriteError,
    CorruptCheckpointError,
    OutputExistsError,
    SelectionError,
    TreeMismatchError,
)
from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.interop.export import export
from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.trajectory import list_steps, open_checkpoint


def convert(source, run, **options):
    return convert_trajectory(source, run, state_dicts.convert, ConvertOptions(**options))


def test_a_run_like_our_own(tmp_path, trajectory):
    run = tmp_path / "run"
    summary = convert(trajectory(), run, verify=True)
    assert summary.converted == (1, 2, 3, 4)
    assert list_steps(run) == [1, 2, 3, 4]
    checkpoint = open_checkpoint(run, step=3)
    np.testing.assert_array_equal(checkpoint.read_leaf("params/a/weight"), np.full((3, 2), 3.0))
    assert checkpoint.metrics == {"epoch": 3, "val/top1_best": 53}
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {"kind": "state_dict"}
    assert config["source"]["path"].endswith("source")
    tree = average_checkpoints(run, k=3, end=4)
    np.testing.assert_array_equal(tree["params"]["a"]["weight"], np.full((3, 2), 3.0))
    assert tree["params"]["a"]["count"] == 4


def test_selection_and_rehearsal(tmp_path, trajectory, capsys):
    source, run = trajectory(range(1, 9)), tmp_path / "run"
    convert(source, run, dry_run=True)
    assert not run.exists()
    assert capsys.readouterr().out.count("epoch ") == 8
    convert(source, run, epochs=(2, 7), every=2)
    assert list_steps(run) == [2, 4, 6]


def test_resumes_by_digest(tmp_path, trajectory, capsys):
    source, run = trajectory(), tmp_path / "run"
    convert(source, run, epochs=(1, 2))
    before = (run / "epochs" / "1").stat().st_mtime_ns
    assert convert(source, run).finished_before == (1, 2)
    assert (run / "epochs" / "1").stat().st_mtime_ns == before
    chunk = run / "epochs" / "2" / "model" / "params.a.weight" / "0.0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    summary = convert(source, run)
    assert summary.converted == (2,)
    assert "bytes changed since saving" in capsys.readouterr().err
    assert open_checkpoint(run, step=2).read_leaf("params/a/weight")[0, 1] == 2


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_trained_again_is_noticed(tmp_path, trajectory, legacy):
    """Of the same name and size, as checkpoints of one model always are."""
    source, run = trajectory(), tmp_path / "run"
    path = source / "checkpoint2.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    convert(source, run)
    size, before = path.stat().st_size, open_checkpoint(run, step=2).read_leaf("params/a/weight")
    content["state_dict"]["module.a.weight"] += 100
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert path.stat().st_size == size
    for options in ({}, {"verify": True}):
        with pytest.raises(
            CheckpointNotFoundError, match=r"epochs/2 was not made from .*--overwrite"
        ):
            convert(source, run, **options)
    assert convert(source, run, overwrite=True).converted == (2,)
    after = open_checkpoint(run, step=2).read_leaf("params/a/weight")
    np.testing.assert_array_equal(after, before + 100)


def test_verify_compares_finished_epochs_too(tmp_path, trajectory):
    source, run = trajectory(), tmp_path / "run"
    convert(source, run)
    # As an earlier version left it: nothing said of the content.
    for about in run.glob(f"epochs/*/{epoch_writer.SOURCE}/metadata"):
        record = json.loads(about.read_text())
        del record["content"]
        about.write_text(json.dumps(record))
    assert convert(source, run, verify=True).finished_before == (1, 2, 3, 4)
    content = torch.load(source / "checkpoint3.pt", weights_only=True)
    content["state_dict"]["module.a.weight"] += 1
    torch.save(content, source / "checkpoint3.pt")
    with pytest.raises(CheckpointNotFoundError, match=r"epochs/3, leaf 'params/a/weight', was not"):
        convert(source, run, verify=True)
    assert list_steps(run) == [1, 2, 3, 4]


def test_killed_halves_are_removed(tmp_path, trajectory):
    source, run = trajectory(), tmp_path / "run"
    left = run / "epochs" / "2.orbax-checkpoint-tmp-123"
    left.mkdir(parents=True)
    convert(source, run)
    assert sorted(p.name for p in (run / "epochs").iterdir()) == ["1", "2", "3", "4"]


def test_an_epoch_of_another_file(tmp_path, trajectory):
    source, run = trajectory(), tmp_path / "run"
    convert(source, run)
    state = {"module.a.weight": torch.zeros(3, 2), "module.a.count": torch.tensor(1)}
    torch.save({"state_dict": state, "note": "x" * 999}, source / "checkpoint1.pt")
    with pytest.raises(CheckpointNotFoundError, match=r"not made from .*--overwrite"):
        convert(source, run)
    assert convert(source, run, overwrite=True).converted == (1,)
    assert open_checkpoint(run, step=1).read_leaf("params/a/weight")[0, 0] == 0


def test_a_broken_file_keeps_what_is_finished(tmp_path, trajectory, capsys):
    source, run = trajectory(), tmp_path / "run"
    path = source / "checkpoint4.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(CorruptCheckpointError, match=r"checkpoint4.pt.*truncated"):
        convert(source, run, workers=1)
    assert list_steps(run) == [1, 2, 3]
    assert "3 epochs are converted and kept" in capsys.readouterr().err
    path.write_bytes(whole)
    assert convert(source, run).converted == (4,)


def test_other_shapes_names_and_epochs(tmp_path, trajectory):
    source = trajectory()
    state = {"module.a.weight": torch.zeros(3, 3), "module.a.count": torch.tensor(1)}
    torch.save({"epoch": 3, "state_dict": state}, source / "checkpoint3.pt")
    with pytest.raises(
        TreeMismatchError,
        match=r"'params/a/weight': expected float32\[3,2\] as in .*checkpoint1.pt, found "
        r"float32\[3,3\] in .*checkpoint3.pt",
    ):
        convert(source, tmp_path / "run", workers=1)
    assert list_steps(tmp_path / "run") == [1, 2]
    state = {"module.a.weight": torch.zeros(3, 2), "module.a.count": torch.tensor(1)}
    torch.save({"epoch": 7, "state_dict": state}, source / "checkpoint3.pt")
    with pytest.raises(SelectionError, match=r"name says epoch 3, its content says 7"):
        convert(source, tmp_path / "run")
    assert convert(source, tmp_path / "run", trust_names=True).converted[:1] == (3,)


def test_missing_epochs(tmp_path, trajectory, capsys):
    source = trajectory((1, 2, 4, 5))
    with pytest.raises(SelectionError, match=r"1 missing: epoch 3; .*--allow_gaps"):
        convert(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    convert(source, tmp_path / "run", allow_gaps=True)
    assert list_steps(tmp_path / "run") == [1, 2, 4, 5]


def test_other_files_in_the_folder(tmp_path, trajectory, capsys):
    source = trajectory()
    (source / "train.log").write_text("x")
    (source / "tensorboard").mkdir()
    (source / "notes.pt").write_text("x")
    convert(source, tmp_path / "run")
    told = capsys.readouterr().err
    assert "ignored: train.log: no checkpoint" in told
    assert "ignored: tensorboard/: no checkpoint" in told
    assert "ignored: notes.pt: " in told


def test_targets_that_cannot_be_used(tmp_path, trajectory, monkeypatch):
    source = trajectory()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputExistsError, match="is a file"):
        convert(source, file)
    with pytest.raises(CheckpointWriteError, match=r"cannot write .*Not a directory"):
        convert(source, file / "run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.txt").write_text("")
    with pytest.raises(OutputExistsError, match=r"already holds 'data\.txt'"):
        convert(source, other)
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "config.json").write_text('{"arch": "resnet50"}')
    with pytest.raises(OutputExistsError, match="trained, not converted"):
        convert(source, trained)

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "run")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with pytest.raises(CheckpointWriteError, match="Read-only file system; choose another run"):
        convert(source, tmp_path / "run")


def test_no_space(tmp_path, trajectory, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointWriteError, match=r"needed.*free.*--every"):
        convert(trajectory(), tmp_path / "run")
    assert list_steps(tmp_path / "run") == []


def test_verify_notices(tmp_path, trajectory, monkeypatch):
    original = epoch_writer.copied_as_ours
    monkeypatch.setattr(epoch_writer, "copied_as_ours", lambda a, layout: original(a, layout) + 1)
    with pytest.raises(CorruptCheckpointError, match=r"what was stored is not 'module.a.*removed"):
        convert(trajectory(), tmp_path / "run", verify=True)
    assert list_steps(tmp_path / "run") == []


def test_two_conversions_at_once(tmp_path, trajectory):
    import fcntl

    source, run = trajectory(), tmp_path / "run"
    run.mkdir()
    with open(run / ".convert.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputExistsError, match="another process is converting"):
            convert(source, run)


def test_interrupted(tmp_path, trajectory, monkeypatch):
    """Ctrl-C stops at the next block and leaves only whole epochs."""
    source, run = trajectory(), tmp_path / "run"
    original = epoch_writer.write_epoch

    def interrupted(directory, *arguments, **options):
        if directory.name == "3":
            raise KeyboardInterrupt
        original(directory, *arguments, **options)

    monkeypatch.setattr(epoch_writer, "write_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, run, workers=1)
    assert list_steps(run) == [1, 2]
    monkeypatch.undo()
    assert convert(source, run).converted == (3, 4)


def test_prefixes_and_ties_may_change_in_mid_run(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    w, v = torch.randn(3), torch.randn(2)
    states = [
        {"module.w": w, "module.tied": w, "module.v": v},
        {"_orig_mod.v": v + 1, "_orig_mod.w": w + 1, "_orig_mod.tied": (w + 1).clone()},
        {"w": w, "tied": w, "v": v},
    ]
    for epoch, state in enumerate(states, 1):
        torch.save({"model": state}, source / f"checkpoint{epoch}.pt")
    convert(source, tmp_path / "run", verify=True)
    np.testing.assert_array_equal(
        open_checkpoint(tmp_path / "run", step=2).read_leaf("params/w"), w + 1
    )
    # The other way round: apart in the first, shared later.
    torch.save({"model": states[1]}, source / "checkpoint0.pt")
    convert(source, tmp_path / "again", verify=True)
    np.testing.assert_array_equal(
        open_checkpoint(tmp_path / "again", step=3).read_leaf("params/tied"), w
    )
    torch.save({"model": {**states[1], "_orig_mod.tied": w}}, source / "checkpoint2.pt")
    with pytest.raises(TreeMismatchError, match=r"'_orig_mod.tied' shares its values .* differs"):
        convert(source, tmp_path / "third", epochs=(1, 3))


def test_tensors_in_inner_dicts_and_beside_the_model(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    w = torch.randn(3)
    inner = {"w": w, "encoder": {"b": w + 1, "deep": {"c": w + 2}}, "ema": {"w": w}}
    content = {"model": inner, "classifier": {"a": w, "b": w}, "optimizer": {"state": {0: [w]}}}
    torch.save({"epoch": 1, **content}, source / "checkpoint1.pt")
    summary = convert(source, tmp_path / "run", verify=True)
    left = "model.ema (1 tensor), classifier (2 tensors), optimizer (1 tensor)"
    assert summary.left_out == left
    assert f"note: left out: {left}" in capsys.readouterr().err
    checkpoint = open_checkpoint(tmp_path / "run")
    assert sorted(checkpoint.leaves) == [*("params/encoder/b", "params/encoder/deep/c", "params/w")]
    export(str(tmp_path / "run"), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    assert torch.equal(back["encoder"]["deep"]["c"], w + 2)
    assert list(back) == ["w", "encoder"]
    run = tmp_path / "other"
    convert(source, run, wrapper="model.encoder.deep")
    assert list(open_checkpoint(run).leaves) == ["params/c"]


def test_a_failure_that_stays_promises_nothing(tmp_path, trajectory, capsys):
    source = trajectory()
    torch.save({"epoch": 4, "state_dict": {"x": torch.ones(1)}}, source / "checkpoint4.pt")
    with pytest.raises(TreeMismatchError):
        convert(source, tmp_path / "run", workers=1)
    told = capsys.readouterr().err
    assert "3 epochs are converted and kept" in told
    assert "goes on" not in told


def test_a_file_without_checksums_that_was_trained_again_is_noticed(tmp_path, trajectory):
    source, run = trajectory(), tmp_path / "run"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = torch.load(source / "checkpoint2.pt", weights_only=True)
        torch.save(content, source / "checkpoint2.pt")
        convert(source, run, verify=True)
        content["state_dict"]["module.a.weight"] += 100
        torch.save(content, source / "checkpoint2.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with pytest.raises(CheckpointNotFoundError, match="was not made from"):
        convert(source, run)
