"""`lawa inspect RUN@90` shows the tree of a checkpoint; it reads metadata alone."""

import dataclasses

from lawa_jax.cli.options import Leaves, Path, print_json
from lawa_jax.display import human, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Leaves):
    """Show the name, shape, dtype and storage of every leaf of a checkpoint. Only metadata is
    read."""

    checkpoint: Path
    """RUN@step, a step directory, or a run, which means its newest step."""
    json: bool = False
    """Print one JSON document instead of text."""

    def __call__(self) -> None:
        """Print the leaves."""
        opened = self.listed.open(
            self.checkpoint, item=self.item, include=self.include, exclude=self.exclude
        )
        leaves = [
            {
                "name": name,
                "dtype": str(spec.dtype),
                "shape": list(spec.shape),
                "chunk": list(opened.chunk_shape(name)),
                "bytes": spec.nbytes,
                "storage": "raw" if opened.is_raw(name) else "compressed or OCDBT",
                "checksum": opened.checksums.get(name),
            }
            for name, spec in opened.leaves.items()
        ]
        if self.json:
            print_json(
                {
                    "checkpoint": opened.label,
                    "path": str(opened.path),
                    "selection": opened.selection.reason,
                    "left_out": list(opened.selection.left_out),
                    "metrics": opened.metrics,
                    "leaves": leaves,
                }
            )
            return
        print(
            table(
                ["leaf", "dtype", "shape", "chunk", "bytes", "storage"],
                [
                    [
                        str(leaf["name"]),
                        str(leaf["dtype"]),
                        str(leaf["shape"]),
                        "whole" if leaf["chunk"] == leaf["shape"] else str(leaf["chunk"]),
                        human(opened.leaves[str(leaf["name"])].nbytes),
                        str(leaf["storage"]),
                    ]
                    for leaf in leaves
                ],
            )
        )
        size = sum(spec.size for spec in opened.leaves.values())
        print(
            f"{opened.label}: {len(leaves)} leaves, {size:,} numbers, {human(opened.nbytes)}; "
            f"checksums: {'yes' if opened.checksums else 'none'}"
        )
        print(f"chosen: {opened.selection.reason}")
        if opened.selection.left_out:
            print(f"left out: {len(opened.selection.left_out)} leaves (--include '*' shows all)")
