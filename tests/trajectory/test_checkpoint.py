"""Checkpoints of other people's code, in every layout, open to the same leaves and bits."""

import numpy as np
import pytest

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory import list_steps, open_checkpoint

TREES = [
    "default",
    "state",
    "params_item",
    "metrics",
    "named_steps",
    "raw",
    "zstd",
    "zarr3",
    "zarr3_plain",
    "linen",
    "nnx",
    "nnx_state",
    "bare",
    "bare_standard",
    "bare_steps",
    "v1",
    "v1_manager",
]


def assert_same_bits(found, expected, name):
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("name", TREES)
def test_every_leaf_of_every_layout(foreign, expected, name):
    checkpoint = open_checkpoint(foreign / name, include=["*"])
    saved = expected(name)
    assert set(checkpoint.leaves) == set(saved)
    for leaf, array in saved.items():
        assert checkpoint.leaves[leaf] == (array.shape, array.dtype)
        assert_same_bits(checkpoint.read_leaf(leaf), array, leaf)
        assert "/".join(checkpoint.keys[leaf]) == leaf


@pytest.mark.parametrize("name", ["raw", "state", "zarr3", "zarr3_plain", "zstd", "v1"])
def test_blocks_of_every_layout(foreign, expected, name):
    checkpoint = open_checkpoint(foreign / name)
    array = expected(name)["params/sharded"]  # [8, 6] on a 2 x 2 mesh
    assert checkpoint.chunk_shape("params/sharded") == (4, 3)
    out = np.empty((5, 3), np.float32)
    checkpoint.read("params/sharded", (slice(2, 7), slice(1, 4)), out)
    np.testing.assert_array_equal(out, array[2:7, 1:4])
    assert checkpoint.is_raw("params/sharded") == (name == "raw")


def test_parameters_are_chosen_by_name(foreign):
    checkpoint = open_checkpoint(foreign / "default")
    roots = {keys[0] for keys in checkpoint.keys.values()}
    assert roots == {"params", "batch_stats"}
    assert "params/10/kernel" in checkpoint.leaves
    assert "opt_state/0/mu" in checkpoint.selection.left_out
    assert checkpoint.selection.reason == "parameters and statistics by name: batch_stats, params"

    linen = open_checkpoint(foreign / "linen")
    assert {keys[0] for keys in linen.keys.values()} == {"params"}
    everything = open_checkpoint(foreign / "linen", include=["*"])
    assert any(name.startswith("opt_state/") for name in everything.leaves)

    bare_parameters = open_checkpoint(foreign / "params_item")
    assert bare_parameters.selection.reason == "all leaves"
    assert "10/kernel" in bare_parameters.leaves

    nnx_model = open_checkpoint(foreign / "nnx")
    assert "norm/mean" in nnx_model.leaves


def test_patterns_choose_leaves(foreign):
    some = open_checkpoint(foreign / "default", include=["opt_state", "params/1*"])
    assert set(some.leaves) == {
        "opt_state/0/mu",
        "opt_state/0/count",
        "params/1/kernel",
        "params/10/kernel",
    }
    fewer = open_checkpoint(foreign / "default", exclude=["*/kernel"])
    assert "params/half" in fewer.leaves
    assert "params/1/kernel" not in fewer.leaves
    with pytest.raises(
        SelectionError, match=r"default@10: no leaf matches 'nothing/\*'; there are"
    ):
        open_checkpoint(foreign / "default", include=["nothing/*"])
    with pytest.raises(SelectionError, match="no leaf is left"):
        open_checkpoint(foreign / "default", exclude=["*"])


def test_read_tree_is_nested_by_key(foreign, expected):
    tree = open_checkpoint(foreign / "state").read_tree(["params/10/kernel", "batch_stats/mean"])
    assert set(tree) == {"params", "batch_stats"}
    np.testing.assert_array_equal(
        tree["params"]["10"]["kernel"], expected("state")["params/10/kernel"]
    )


def test_metrics_strings_and_empty_nodes_are_known(foreign):
    checkpoint = open_checkpoint(foreign / "metrics", step=2)
    assert checkpoint.metrics == {"loss": 1.5, "val/top1": 0.5}
    assert checkpoint.strings == {"note": "hello"}
    assert checkpoint.empty == {("params", "empty"): "Dict", ("opt_state", "1"): "None"}
    assert checkpoint.checksums == {}
    assert checkpoint.step == 2
    assert checkpoint.label == f"{foreign / 'metrics'}@2"


def test_root_step_and_item_directories(foreign):
    for path, step in (
        ("state", 10),
        ("state/2", 2),
        ("state/2/state", 2),
        ("named_steps/checkpoint_000002", 2),
        ("bare", None),
        ("v1", None),
        ("v1/state", None),
        ("v1_manager", 10),
    ):
        checkpoint = open_checkpoint(foreign / path)
        assert checkpoint.step == step, path
        assert "params/10/kernel" in checkpoint.leaves, path
    # Newest by number: "10" comes before "2" in a listing.
    assert list_steps(foreign / "default") == [2, 10]
    assert list_steps(foreign / "named_steps") == [2, 10]


def test_items_are_chosen_by_name(foreign):
    chosen = open_checkpoint(foreign / "two_items")
    assert chosen.path.name == "params"
    other = open_checkpoint(foreign / "two_items", item="opt_state", include=["*"])
    assert set(other.leaves) == {"0/mu", "0/count"}
    with pytest.raises(SelectionError, match="no item 'none'; it holds opt_state, params"):
        open_checkpoint(foreign / "two_items", item="none")


def test_missing_steps_list_what_exists(foreign):
    with pytest.raises(CheckpointNotFoundError, match="no committed step 3; it has 2, 10"):
        open_checkpoint(foreign / "default", step=3)
    with pytest.raises(CheckpointNotFoundError, match="is not a directory"):
        open_checkpoint(foreign / "nowhere")


def test_buffers_must_fit(foreign):
    checkpoint = open_checkpoint(foreign / "raw")
    with pytest.raises(ValueError, match=r"must be C-contiguous float32\[3, 4\], found float64"):
        checkpoint.read("params/1/kernel", (slice(0, 3), slice(0, 4)), np.empty((3, 4)))
    with pytest.raises(ValueError, match="expected 2 slices, found 1"):
        checkpoint.read("params/1/kernel", (slice(0, 3),), np.empty((3, 4), np.float32))
    with pytest.raises(SelectionError, match="has no leaf 'params/x' among those chosen"):
        checkpoint.read_leaf("params/x")
