"""Reading anybody's Orbax checkpoints, and writing our own: the only importer of Orbax."""

from lawa_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lawa_jax.checkpoints.discovery import list_steps, parse_address
from lawa_jax.checkpoints.streaming_writer import StreamingWriter
from lawa_jax.checkpoints.verify import stored_digest, verify_checkpoint, verify_leaf
from lawa_jax.checkpoints.writer import write_checkpoint

__all__ = [
    "Checkpoint",
    "StreamingWriter",
    "list_steps",
    "open_checkpoint",
    "parse_address",
    "stored_digest",
    "verify_checkpoint",
    "verify_leaf",
    "write_checkpoint",
]
