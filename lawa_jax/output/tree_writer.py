"""Writing a tree that is in memory as one committed checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from lawa_jax.output.step_writer import StepWriter
from lawa_jax.trajectory.formats.orbax_metadata import DICT, SEQUENCE
from lawa_jax.tree import LeafSpec, PyTree, key_name, leaf_name


def _host(leaf: Any) -> np.ndarray:
    import jax

    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def write_checkpoint(
    directory: epath.PathLike,
    tree: PyTree,
    *,
    metrics: Mapping[str, float] | None = None,
    checksums: bool = True,
    overwrite: bool = False,
    item: str = "model",
    json_items: Mapping[str, Any] | None = None,
) -> None:
    """Write one step directory that plain Orbax loads: aside, verified, then renamed.

    Args:
      directory: the step directory to be, for instance ``RUN/epochs/90``.
      tree: arrays and numbers, fully addressable; PRNG keys are stored as their key data.
      metrics: numbers saved beside it.
      checksums: read everything back and compare digests before publishing. The digests are
        stored in any case.
      overwrite: replace an existing directory, once the new one is complete.
      item: name of the tree's item.
      json_items: further JSON items by name.

    Raises:
      OutputExistsError: `directory` exists.
      CheckpointWriteError: it cannot be written; nothing is left that looks finished.
      CorruptCheckpointError: what was read back is not what was written.
    """
    import jax  # not needed for reading, and half a second

    arrays: dict[str, np.ndarray] = {}
    keys, key_types, kinds = {}, {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = leaf_name(path)
        if name in arrays:
            raise ValueError(f"two leaves are both named {name!r}; rename one of them")
        arrays[name] = _host(leaf)
        keys[name] = tuple(key_name(key) for key in path)
        key_types[name] = tuple(SEQUENCE if hasattr(key, "idx") else DICT for key in path)
        kinds[name] = "np.ndarray" if hasattr(leaf, "dtype") else "scalar"
    specs = {name: LeafSpec(array.shape, array.dtype) for name, array in arrays.items()}
    with StepWriter(
        directory,
        specs,
        keys,
        metrics=metrics,
        item=item,
        json_items=json_items,
        key_types=key_types,
        kinds=kinds,
        overwrite=overwrite,
    ) as writer:
        for name, array in arrays.items():
            writer.write(name, tuple(slice(0, n) for n in array.shape), array)
        writer.finish(verify=checksums)
