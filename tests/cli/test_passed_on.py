"""What restores a source restores its average, into the same structure, with what was beside."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

W = {"w": jnp.ones(2)}
LAYERS = [{"w": jnp.ones((2, 3))}, (), {"w": jnp.ones((3, 1))}]
STATE = {"params": W, "opt_state": optax.adamw(1e-3).init(W), "step": 1}
HOLLOW = {"params": {"d": W, "act": {}, "bias": None}}
CASES = {
    "a full training state": (STATE, ["--include", "*"], STATE),
    "a list of layers": ({"params": LAYERS, "step": 1}, [], {"params": LAYERS}),
    "layers and nothing else": (LAYERS, [], LAYERS),
    "empty nodes": ({**HOLLOW, "step": 1}, [], HOLLOW),
}
CUSTOM = {"scan_layers": True}


@pytest.mark.parametrize("case", CASES)
def test_the_structure_is_the_sources(lawa, tmp_path, case):
    tree, flags, want = CASES[case]
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            saved = ocp.args.StandardSave(jax.tree.map(lambda x, s=step: x * s, tree))
            manager.save(step, args=saved, custom_metadata=CUSTOM)
    out = tmp_path / "out"
    assert not lawa("average", tmp_path / "run", "-k", "2", *flags, "-o", out).code
    assert not lawa("verify", out).code
    ocp.PyTreeCheckpointer().restore(out / "default")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, want)
    restored = ocp.StandardCheckpointer().restore(out / "default", target)
    assert jax.tree.structure(restored) == jax.tree.structure(want)
    averaged, source = (
        [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and x.dtype == jnp.float32]
        for tree in (restored, want)
    )
    for got, was in zip(averaged, source, strict=True):
        np.testing.assert_array_equal(got, 1.5 * np.asarray(was))
    assert json.loads((out / "_CHECKPOINT_METADATA").read_text())["custom_metadata"] == CUSTOM


def test_json_items_of_the_newest_source_come_along(lawa, tmp_path):
    with ocp.CheckpointManager(tmp_path / "run", item_names=("state", "config")) as manager:
        for step in (1, 2):
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({"params": W}),
                    config=ocp.args.JsonSave({"width": 4, "saved_at": step}),
                ),
            )
    out = tmp_path / "out"
    assert not lawa("average", tmp_path / "run", "-k", "2", "-o", out).code
    restored = ocp.JsonCheckpointHandler().restore(out / "config")
    assert restored == {"width": 4, "saved_at": 2}
