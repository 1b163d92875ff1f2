import shutil

import numpy as np

from lawa_jax.output import write_checkpoint


def test_differences_leaf_by_leaf(lawa, tmp_path):
    one = {"w": np.float32([3, 4]), "b": np.float32([1]), "n": np.int32([1, 2])}
    other = {"w": np.float32([3, 4.5]), "b": np.float32([1]), "n": np.int32([1, 3])}
    write_checkpoint(tmp_path / "1", one)
    write_checkpoint(tmp_path / "2", other)
    found = lawa("diff", f"{tmp_path}@1", f"{tmp_path}@2", "--json")
    assert found.code == 0
    assert found.json["identical"] == 1
    assert {d["name"]: d for d in found.json["different"]}["w"] == {
        "name": "w", "max_abs": 0.5, "relative": 0.1, "differing": 1, "size": 2, "problem": None,
    }  # fmt: skip
    text = lawa("diff", f"{tmp_path}@1", tmp_path / "2").out
    assert "1 leaves are identical, 2 differ" in text
    same = lawa("diff", f"{tmp_path}@1", f"{tmp_path}@1")
    assert (same.code, same.out) == (0, "3 leaves are identical, 0 differ\n")
    only = lawa("diff", f"{tmp_path}@1", f"{tmp_path}@2", "--include", "b", "--json").json
    assert only == {"identical": 1, "different": []}


def test_other_models_are_a_mismatch(lawa, tmp_path):
    write_checkpoint(tmp_path / "1", {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)})
    write_checkpoint(tmp_path / "2", {"w": np.zeros(3, np.float32)})
    found = lawa("diff", f"{tmp_path}@1", f"{tmp_path}@2")
    assert found.code == 2
    assert "float32[2] against float32[3]" in found.out
    assert f"only in {tmp_path}@1" in found.out
    assert "are not of one model" in found.err


def test_verifying(lawa, run, tmp_path):
    lawa("average", run, "-k", "2", "-o", tmp_path / "out")
    found = lawa("verify", tmp_path / "out")
    assert found.code == 0
    assert "15 leaves are, bit for bit, the average of 2 unchanged checkpoints" in found.out
    strong = lawa("verify", tmp_path / "out", "--strong", "--json").json
    assert strong["leaves"] == 15
    assert strong["sources"] == [f"{run}@9", f"{run}@10"]
    assert strong["missing"] == []
    assert {len(text) for text in strong["sha256"].values()} == {64}
    assert len(strong["sha256"]) == 15
    assert "record" in lawa("verify", f"{run}@3").err
    assert lawa("verify", f"{run}@3").code == 2


def test_damage_and_lost_sources(lawa, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    lawa("average", copied, "-k", "2", "-o", tmp_path / "out")
    shutil.rmtree(copied / "epochs" / "9")
    lost = lawa("verify", tmp_path / "out")
    assert lost.code == 3
    assert f"1 sources are gone, first {copied}@9" in lost.out
    assert lawa("verify", tmp_path / "out", "--json").json["missing"] == [f"{copied}@9"]
    chunk = next((tmp_path / "out/model/params.dense.kernel").glob("[0-9]*"))
    chunk.write_bytes(bytes(reversed(chunk.read_bytes())))
    damaged = lawa("verify", tmp_path / "out")
    assert damaged.code == 3
    assert "leaf 'params/dense/kernel': bytes changed since saving" in damaged.err
