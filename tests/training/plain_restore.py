"""Restores an epoch and a resume state with plain Orbax, without this package.

Run as a script: ``python plain_restore.py RUN EPOCH STEP``; prints what it found as JSON.
"""

import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

run, epoch, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def leaves(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(key.key) for key in path): [str(leaf.dtype), np.asarray(leaf).tobytes().hex()]
        for path, leaf in flat
    }


with ocp.CheckpointManager(f"{run}/epochs") as manager:
    epochs, saved = manager.all_steps(), manager.restore(epoch)
    metrics = manager.metrics(epoch)
with ocp.CheckpointManager(f"{run}/resume") as manager:
    states, state = manager.all_steps(), manager.restore(step)
print(
    json.dumps(
        {
            "epochs": sorted(epochs), "states": sorted(states), "metrics": metrics,
            "algorithm": saved["checksums"]["algorithm"], "same metrics": saved["metrics"],
            "model": leaves(saved["model"]), "state": leaves(state["model"]),
        }
    )
)  # fmt: skip
