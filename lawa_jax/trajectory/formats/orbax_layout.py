"""The small JSON files that make a directory an Orbax checkpoint, written without Orbax.

Arrays are declared ``np.ndarray``: they load on any topology, without a sharding.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lawa_jax.trajectory.formats.orbax_metadata import StoredLeaf
from lawa_jax.tree import LeafSpec

_HANDLERS = "orbax.checkpoint._src.handlers"
PYTREE_HANDLER = f"{_HANDLERS}.pytree_checkpoint_handler.PyTreeCheckpointHandler"
JSON_HANDLER = f"{_HANDLERS}.json_checkpoint_handler.JsonCheckpointHandler"
COMMITTED = "Checkpoint commit was successful"


def json_file(item: str) -> str:
    """File name of a JSON item; Orbax's metrics have one of their own."""
    return "metrics" if item == "metrics" else "metadata"


def tree_metadata(leaves: Iterable[StoredLeaf], custom: Any = None) -> dict[str, Any]:
    """Content of ``_METADATA`` for a tree of raw zarr 2 arrays."""
    entries = {
        str(leaf.keys): {
            "key_metadata": [
                {"key": key, "key_type": kind}
                for key, kind in zip(leaf.keys, leaf.key_types, strict=True)
            ],
            "value_metadata": {"value_type": leaf.kind, "skip_deserialize": leaf.is_empty},
        }
        for leaf in leaves
    }
    return {
        "tree_metadata": entries,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": custom,
    }


def step_metadata(
    items: Mapping[str, str], started_ns: int, custom: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of ``_CHECKPOINT_METADATA``; `items` are handler names by item."""
    return {
        "item_handlers": dict(items),
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": started_ns,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": dict(custom),
    }


def zarr_dtype(dtype: np.dtype) -> str:
    """A dtype as zarr 2 spells it: ``<f4``; those of ml_dtypes by name."""
    if hasattr(ml_dtypes, dtype.name):
        return dtype.name
    return dtype.newbyteorder("<").str


def array_header(spec: LeafSpec, chunks: tuple[int, ...]) -> dict[str, Any]:
    """Content of ``.zarray`` for raw C-order chunks."""
    return {
        "chunks": list(chunks),
        "compressor": None,
        "dimension_separator": ".",
        "dtype": zarr_dtype(spec.dtype),
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(spec.shape),
        "zarr_format": 2,
    }
