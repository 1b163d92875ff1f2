"""Loads a checkpoint in every way plain Orbax offers, without this package.

Run as a script: ``python plain_loader.py RUN STEP EXPECTED.npz``; fails unless every way gives
the expected values and dtypes.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import ml_dtypes  # noqa: F401
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

run, step, expected = sys.argv[1], int(sys.argv[2]), dict(np.load(sys.argv[3]))
item = os.path.join(run, "epochs", str(step), "model")


def check(how, tree):
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(str(getattr(k, "key", getattr(k, "idx", None))) for k in path)
        leaves[name] = np.asarray(leaf)
    assert set(leaves) == set(expected), (how, set(leaves) ^ set(expected))
    for name, leaf in leaves.items():
        assert leaf.dtype.name == str(expected[name][0]), (how, name, leaf.dtype)
        assert leaf.tobytes().hex() == str(expected[name][1]), (how, name)
    print(how, "ok")


with ocp.CheckpointManager(os.path.join(run, "epochs")) as manager:
    assert manager.all_steps() == [step]
    restored = manager.restore(step)
    check("CheckpointManager.restore", restored["model"])
    assert restored["checksums"]["algorithm"], restored["checksums"]
    assert restored["record"] == {"why": "test"}
options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["val/loss"], best_mode="min")
handlers = {"model": ocp.PyTreeCheckpointHandler()}
with ocp.CheckpointManager(
    os.path.join(run, "epochs"), options=options, item_handlers=handlers
) as manager:
    assert manager.best_step() == step
    assert manager.metrics(step) == {"val/loss": 0.25}
    metadata = manager.item_metadata(step).model.tree
    check(
        "item_metadata and PyTreeRestore",
        manager.restore(
            step, args=ocp.args.Composite(model=ocp.args.PyTreeRestore(item=metadata))
        ).model,
    )
check("PyTreeCheckpointer", ocp.PyTreeCheckpointer().restore(item))
with ocp.StandardCheckpointer() as checkpointer:
    check("StandardCheckpointer", checkpointer.restore(item))
loaded = v1.load_checkpointables(os.path.join(run, "epochs", str(step)))
check("v1.load_checkpointables", loaded["model"])
