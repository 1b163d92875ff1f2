"""Writes checkpoints with whatever Orbax its interpreter has; see `test_old_orbax.py`.

Run as a script: ``python old_orbax_writer.py DIRECTORY``.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

root = sys.argv[1]
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4), ("x",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
tree = {
    "params": {str(i): {"w": np.full((2, 3), i, np.float32)} for i in range(11)}
    | {
        "sharded": jax.device_put(jnp.arange(8.0), sharding),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "zeros": jnp.zeros((4,), jnp.float32),
    },
    "opt_state": [{"mu": np.ones(2, np.float32)}, None],
    "step": 5,
}
with ocp.CheckpointManager(os.path.join(root, "default")) as manager:
    manager.save(5, args=ocp.args.StandardSave(tree))
for name, options in {"raw": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}.items():
    handlers = {"state": ocp.PyTreeCheckpointHandler(**options)}
    with ocp.CheckpointManager(os.path.join(root, name), item_handlers=handlers) as manager:
        manager.save(5, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
ocp.PyTreeCheckpointer(use_ocdbt=False).save(os.path.join(root, "bare"), tree)
