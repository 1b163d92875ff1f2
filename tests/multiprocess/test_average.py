"""The command with several processes: values and digests of one."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax import checkpoint as ocp

from lawa_jax.trajectory import open_checkpoint, verify_checkpoint

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]

# Saved by plain Orbax from 8 devices, the kernel in 8 shards.
SAVE = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax import checkpoint as ocp
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
with ocp.CheckpointManager(sys.argv[1]) as manager:
    for step in (1, 2, 3):
        rng = np.random.default_rng(step)
        tree = {"params": {
            "kernel": put(rng.normal(size=(64, 512)).astype(np.float32), "fsdp"),
            "half": put(rng.normal(size=(16, 8)).astype("bfloat16"), None, "fsdp"),
            "bias": put(rng.normal(size=(512,)).astype(np.float32)),
        }}
        manager.save(step, args=ocp.args.PyTreeSave(tree))
"""


def test_saved_by_8_devices_averaged_by_1_2_and_4_processes(start, tmp_path):
    script = tmp_path / "save.py"
    script.write_text(SAVE)
    run = tmp_path / "run"
    saved = start([script, run], 1, devices=8)
    assert saved.wait() == [0], saved.text()
    cli = tmp_path / "lawa.py"
    cli.write_text("from lawa_jax.cli.main import main\nmain()\n")
    found = {}
    for count in (1, 2, 4):
        out = tmp_path / f"out{count}"
        done = start([cli, "average", run, "-k", 3, "-o", out, "--json"], count, devices=1)
        assert done.wait() == [0] * count, done.text()
        average = open_checkpoint(out)
        assert verify_checkpoint(average) == 3
        found[count] = average.checksums
        record = json.loads(next(out.glob("record/*")).read_text())
        assert json.dumps(record).count("kernel") >= 1
    assert found[1] == found[2] == found[4]
    expected = np.mean(
        [np.random.default_rng(s).normal(size=(64, 512)).astype(np.float32) for s in (1, 2, 3)],
        axis=0, dtype=np.float64,
    )  # fmt: skip
    tree = open_checkpoint(tmp_path / "out4").read_tree()
    np.testing.assert_allclose(tree["params"]["kernel"], expected, rtol=1e-6)
    # And restored by plain Orbax onto this process's four devices.
    spread = jax.sharding.NamedSharding(
        jax.make_mesh((4,), ("x",)), jax.sharding.PartitionSpec("x")
    )
    item = next(p for p in (tmp_path / "out4").iterdir() if (p / "_METADATA").exists())
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(
            item,
            ocp.args.PyTreeRestore(
                restore_args={
                    "params": {
                        name: ocp.ArrayRestoreArgs(sharding=spread)
                        for name in ("kernel", "half", "bias")
                    }
                }
            ),
        )
    assert len(tree["params"]["kernel"].sharding.device_set) == 4
