"""Damaged checkpoints give an error that names what is damaged; they never load as numbers."""

import json
import shutil

import numpy as np
import pytest

from lawa_jax.errors import CheckpointNotFoundError, CorruptCheckpointError
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint, verify_leaf


@pytest.fixture
def ours(tmp_path):
    tree = {
        "params": {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.ones(3, np.float32)}
    }
    write_checkpoint(tmp_path / "run/epochs/90", tree, metrics={"loss": 1.0})
    return tmp_path / "run"


def test_a_missing_chunk_is_named(ours):
    (ours / "epochs/90/model/params.w/0.0").unlink()
    with pytest.raises(
        CorruptCheckpointError, match=r"run@90, leaf 'params/w': chunk file .*params\.w/0\.0 is mis"
    ):
        open_checkpoint(ours).read_leaf("params/w")


def test_a_chunk_that_cannot_be_opened_is_named(ours):
    path = ours / "epochs/90/model/params.w/0.0"
    path.unlink()
    path.symlink_to(path.name)  # a loop: cannot be opened
    with pytest.raises(CorruptCheckpointError, match=r"leaf 'params/w': .*/0\.0 cannot be read"):
        open_checkpoint(ours).read_leaf("params/w")


@pytest.mark.parametrize("size", [0, 95, 97])
def test_a_chunk_of_another_size_is_named(ours, size):
    path = ours / "epochs/90/model/params.w/0.0"
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"x"))
    message = rf"leaf 'params/w': chunk file .*/0\.0 is damaged: expected 96 bytes, found {size}"
    with pytest.raises(CorruptCheckpointError, match=message):
        open_checkpoint(ours).read_leaf("params/w")


@pytest.mark.parametrize("bit", [0, 100, 767])
def test_a_flipped_bit_is_told_by_the_checksum(ours, bit):
    path = ours / "epochs/90/model/params.w/0.0"
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    checkpoint = open_checkpoint(ours)
    verify_leaf(checkpoint, "params/b", checkpoint.read_leaf("params/b"))
    with pytest.raises(
        CorruptCheckpointError, match=r"run@90, leaf 'params/w': bytes changed since saving"
    ):
        verify_leaf(checkpoint, "params/w", checkpoint.read_leaf("params/w"))
    with pytest.raises(CorruptCheckpointError, match="leaf 'params/w': bytes changed"):
        verify_checkpoint(checkpoint)


def test_a_missing_array_is_named(ours):
    shutil.rmtree(ours / "epochs/90/model/params.b")
    with pytest.raises(CorruptCheckpointError, match=r"array 'params\.b' is missing: neither"):
        open_checkpoint(ours)


def test_a_leaf_lost_with_its_metadata_is_missed(ours):
    shutil.rmtree(ours / "epochs/90/model/params.b")
    (ours / "epochs/90/model/_METADATA").unlink()
    with pytest.raises(CorruptCheckpointError, match="leaf 'params/b' has a checksum but is not"):
        verify_checkpoint(open_checkpoint(ours))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tree_metadata": 3}'])
def test_damaged_metadata_are_named(ours, content):
    (ours / "epochs/90/model/_METADATA").write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r"model/_METADATA"):
        open_checkpoint(ours)


@pytest.mark.parametrize("content", ["", "{}", '{"zarr_format": 2, "shape": 3}'])
def test_damaged_headers_are_named(ours, content):
    (ours / "epochs/90/model/params.w/.zarray").write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r"params\.w/\.zarray does not describe"):
        open_checkpoint(ours)


def test_damaged_checksums_are_named(ours):
    (ours / "epochs/90/checksums/metadata").write_text('{"algorithm": ')
    with pytest.raises(CorruptCheckpointError, match="checksums/metadata cannot be read as JSON"):
        verify_checkpoint(open_checkpoint(ours))


@pytest.mark.parametrize("name", ["state", "zarr3", "zarr3_plain", "zstd", "raw"])
@pytest.mark.parametrize("how", ["delete", "truncate"])
def test_any_file_lost_or_cut_is_an_error_or_does_not_matter(
    foreign, expected, tmp_path, name, how
):
    source = foreign / name / "2"
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    files = [f for f in files if f.name[0] in "0123456789abcdefmz." and f.parts[0] != "metrics"]
    # A dozen of them, spread over the kinds of files, are enough.
    files = files[:: max(1, len(files) // 12)]
    saved, errors = expected(name), []
    for file in files:
        target = tmp_path / "run" / "2"
        shutil.copytree(source, target)
        if how == "delete":
            (target / file).unlink()
        else:
            data = (target / file).read_bytes()
            (target / file).write_bytes(data[: len(data) // 2])
        try:
            checkpoint = open_checkpoint(tmp_path / "run", step=2)
            for leaf in checkpoint.leaves:
                found = checkpoint.read_leaf(leaf)
                assert found.tobytes() == saved[leaf].tobytes(), (file, leaf)
        except CorruptCheckpointError as error:
            errors.append(str(error))
        shutil.rmtree(tmp_path / "run")
    assert errors
    assert all("run@2" in message for message in errors)


def test_a_missing_manifest_is_named(foreign, tmp_path):
    shutil.copytree(foreign / "state", tmp_path / "state")
    (tmp_path / "state/10/state/manifest.ocdbt").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.ocdbt is missing"):
        open_checkpoint(tmp_path / "state")


def test_lost_tree_metadata_are_found_again(foreign, expected, tmp_path):
    for name, item in (("state", "state"), ("raw", "odd_name"), ("zarr3", "odd_name")):
        shutil.copytree(foreign / name, tmp_path / name)
        (tmp_path / name / "10" / item / "_METADATA").unlink()
        checkpoint = open_checkpoint(tmp_path / name)
        array = expected(name)["params/10/kernel"]
        assert checkpoint.read_leaf("params/10/kernel").tobytes() == array.tobytes()


def test_unfinished_and_empty_directories_are_no_steps(foreign, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(foreign / "state", root)
    (root / "11").mkdir()
    (root / "12.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(root / "10", root / "13.orbax-checkpoint-tmp-123")
    shutil.copytree(root / "10/state", root / "14/state.orbax-checkpoint-tmp")
    assert list_steps(root) == [2, 10]
    assert open_checkpoint(root).step == 10
    for name in ("11", "14"):
        with pytest.raises(CheckpointNotFoundError, match="holds no committed checkpoint"):
            open_checkpoint(root / name)
    with pytest.raises(CheckpointNotFoundError, match="save that never finished"):
        open_checkpoint(root / "13.orbax-checkpoint-tmp-123")
    with pytest.raises(CheckpointNotFoundError, match="is not a directory"):
        list_steps(root / "nowhere")


def test_metadata_cannot_point_outside(ours, tmp_path):
    write_checkpoint(tmp_path / "secret", {"w": np.zeros(2)})
    path = ours / "epochs/90/model/_METADATA"
    path.write_text(path.read_text().replace('"b"', '"b/../../../../../../secret/model/w"'))
    with pytest.raises(CorruptCheckpointError, match="points outside of the checkpoint"):
        open_checkpoint(ours)


def renamed(text):
    return text.replace('"params/w"', '"params/v"')


def of_another_algorithm(text):
    return text.replace("lawa-sum64", "lawa-sum65")


def without_a_leaf(text):
    stored = json.loads(text)
    del stored["leaves"]["params/w"]
    return json.dumps(stored)


def numbered(text):
    stored = json.loads(text)
    stored["leaves"]["params/w"]["digest"] = 7
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "checksum"),
        (of_another_algorithm, "are of algorithm 'lawa-sum65-v1', expected 'lawa-sum64-v1'"),
        (without_a_leaf, "leaf 'params/w' is stored without a checksum"),
        (lambda text: "{}", "its checksums are damaged: object missing required field"),
        (lambda text: "[]", "its checksums are damaged"),
        (numbered, "its checksums are damaged: expected `str`"),
    ],
)
def test_damage_to_the_checksums_does_not_switch_the_check_off(ours, change, message):
    path = ours / "epochs/90/checksums/metadata"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CorruptCheckpointError, match=message):
        open_checkpoint(ours).checksums  # noqa: B018


def test_lost_checksums_are_missed(ours):
    shutil.rmtree(ours / "epochs/90/checksums")
    with pytest.raises(CorruptCheckpointError, match=r"its checksums \(.*checksums\) are gone"):
        open_checkpoint(ours).checksums  # noqa: B018
