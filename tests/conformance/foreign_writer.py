"""Writes checkpoints with plain Orbax, Flax and optax code that knows nothing of this package.

Run as a script: ``python foreign_writer.py DIRECTORY``. Beside each checkpoint it leaves what was
saved (``NAME.expected.npz``: bytes by leaf name, and dtype and shape as JSON).
"""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1

root = sys.argv[1]
mesh = jax.make_mesh((2, 2), ("x", "y"))


def sharded(array, *spec):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.device_put(array, sharding)


def key_text(key):
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def expect(name, tree):
    arrays, kinds = {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, str):
            continue
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        text = "/".join(map(key_text, path))
        arrays[text] = np.frombuffer(leaf.tobytes(), np.uint8)
        kinds[text] = [leaf.dtype.name, list(leaf.shape)]
    np.savez(os.path.join(root, f"{name}.expected.npz"), kinds=json.dumps(kinds), **arrays)


def plain_tree(offset=0.0):
    r = np.random.default_rng(7)
    return {
        "params": {
            # Eleven layers: "10" sorts before "2".
            str(i): {"kernel": jnp.asarray(r.normal(size=(3, 4)) + offset, jnp.float32)}
            for i in range(11)
        }
        | {
            "half": jnp.asarray(r.normal(size=(5,)), jnp.bfloat16),
            "sharded": sharded(jnp.asarray(r.normal(size=(8, 6)), jnp.float32), "x", "y"),
            "rows": sharded(jnp.asarray(r.normal(size=(4, 3, 2)), jnp.float32), ("x", "y")),
            "scalar": jnp.float32(2.5),
            "zeros": jnp.zeros((4, 4), jnp.float32),
            "empty": {},
        },
        "batch_stats": {"mean": np.arange(3, dtype=np.float32)},
        "opt_state": [{"mu": jnp.ones((3, 4)), "count": jnp.int32(7)}, None],
        "step": 12,
        "lr": 0.1,
        "note": "hello",
        "rng": jax.random.key(3),
        "flags": np.array([True, False]),
    }


def manager(name, tree, steps=(2, 10), item=None, handler=None, options=None, metrics=None):
    path = os.path.join(root, name)
    handlers = {item: handler or ocp.PyTreeCheckpointHandler()} if item else None
    with ocp.CheckpointManager(path, item_handlers=handlers, options=options) as m:
        for step in steps:
            args = ocp.args.PyTreeSave(tree)
            if item:
                args = ocp.args.Composite(**{item: args})
            m.save(step, args=args, metrics=metrics)
        m.wait_until_finished()
    expect(name, tree)


def train_state():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4)(x)
            return nn.Dense(2, param_dtype=jnp.bfloat16)(x)

    net = Net()
    variables = net.init(jax.random.key(0), jnp.ones((1, 3)))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState.create(apply_fn=net.apply, params=variables["params"], tx=tx)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


tree = plain_tree()
manager("default", tree)
manager("state", tree, item="state")
manager("params_item", tree["params"], item="params")
best = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], max_to_keep=5)
manager("metrics", tree, item="model", options=best, metrics={"loss": 1.5, "val": {"top1": 0.5}})
named = ocp.CheckpointManagerOptions(step_prefix="checkpoint", step_format_fixed_length=6)
manager("named_steps", tree, options=named)
for name, options in {
    "raw": {"use_ocdbt": False, "use_compression": False},
    "zstd": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "zarr3_plain": {"use_ocdbt": False, "use_zarr3": True},
}.items():
    manager(name, tree, item="odd_name", handler=ocp.PyTreeCheckpointHandler(**options))
manager("linen", train_state(), steps=(1,), item="state")
state = nnx.state(Block(nnx.Rngs(0)))
manager("nnx", nnx.to_pure_dict(state), steps=(1,), item="model")
with ocp.CheckpointManager(os.path.join(root, "nnx_state")) as m:
    m.save(1, args=ocp.args.StandardSave(state))
expect("nnx_state", state)

ocp.PyTreeCheckpointer().save(os.path.join(root, "bare"), tree)
expect("bare", tree)
with ocp.StandardCheckpointer() as checkpointer:
    without_text = {k: v for k, v in tree.items() if k != "note"}
    checkpointer.save(os.path.join(root, "bare_standard"), without_text)
expect("bare_standard", without_text)


v1.save(os.path.join(root, "v1"), tree)
expect("v1", tree)
with v1.training.Checkpointer(os.path.join(root, "v1_manager")) as checkpointer:
    for step in (2, 10):
        checkpointer.save(step, tree)
expect("v1_manager", tree)
with ocp.CheckpointManager(
    os.path.join(root, "two_items"), item_names=("params", "opt_state")
) as m:
    save = {"params": tree["params"], "opt_state": tree["opt_state"]}
    m.save(1, args=ocp.args.Composite(**{k: ocp.args.PyTreeSave(v) for k, v in save.items()}))
expect("two_items", tree["params"])
for step in (2, 10):
    ocp.PyTreeCheckpointer().save(os.path.join(root, "bare_steps", str(step)), tree)
expect("bare_steps", tree)
