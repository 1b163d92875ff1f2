"""The command on ``gs://`` paths: epath and fsspec are the real ones, the bucket is a directory."""

import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.output import destination, write_checkpoint
from lawa_jax.trajectory import list_steps
from lawa_jax.trajectory.formats import tensorstore_reader


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    root = tmp_path / "bucket"
    root.mkdir()

    class Bucket(DirFileSystem):
        protocol = "gcs"
        cachable = False

        def __init__(self, **options):
            super().__init__(path=str(root), fs=LocalFileSystem(auto_mkdir=True))

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("gs://").strip("/")

        def _join(self, path):
            return super()._join(self._strip_protocol(path) if isinstance(path, str) else path)

    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    monkeypatch.setattr(
        tensorstore_reader, "directory_spec",
        lambda item: {"driver": "file", "path": str(item).replace("gs:/", str(root), 1) + "/"},
    )  # fmt: skip
    return root


def test_from_bucket_to_bucket(lawa, bucket, monkeypatch):
    for step in (1, 2, 3):
        write_checkpoint(f"gs://runs/a/{step}", {"w": np.full((2, 3), step, np.float32)})
    assert (bucket / "runs/a/3/commit_success.txt").exists()
    (bucket / "runs/a/1/commit_success.txt").unlink()
    assert [row["step"] for row in lawa("ls", "gs://runs/a", "--json").json] == [2, 3]

    written = []
    original = destination.ObjectStoreDestination.write_text
    monkeypatch.setattr(
        destination.ObjectStoreDestination, "write_text",
        lambda self, name, text: (written.append(name), original(self, name, text)),
    )  # fmt: skip
    command = ["average", "gs://runs/a", "-k", "2", "-o", "gs://runs/out"]
    done = lawa(*command)
    assert done.code == 0, done.err
    assert written[-1] == "commit_success.txt"
    np.testing.assert_array_equal(
        average_checkpoints("gs://runs/a", k=2)["w"], np.full((2, 3), 2.5, np.float32)
    )
    assert lawa("verify", "gs://runs/out").code == 0
    assert lawa("inspect", "gs://runs/out").code == 0
    refused = lawa(*command)
    assert (refused.code, "gs://runs/out already exists" in refused.err) == (2, True)
    assert lawa(*command, "--overwrite").code == 0
    (bucket / "runs/out/commit_success.txt").unlink()
    lost = lawa("verify", "gs://runs/out")
    assert (lost.code, "or its commit marker is missing" in lost.err) == (2, True)


def test_a_sweep_into_a_bucket(lawa, bucket, run):
    done = lawa("sweep", run, "-k", "2", "--end", "9,10", "-o", "gs://runs/sweep", "--json")
    assert done.code == 0, done.err
    assert done.json["outputs"] == [f"gs://runs/sweep/k2-end{e}-uniform" for e in (9, 10)]
    assert lawa("verify", done.json["outputs"][0]).code == 0
    assert not (bucket / "runs/sweep/.lawa-sweep").exists()
    assert list_steps("gs://runs/sweep") == []


def test_other_schemes_are_explained(lawa):
    done = lawa("ls", "ftp://host/run")
    assert done.code == 2
    assert "ftp://host/run: expected a local path or one of gs://, s3://" in done.err
