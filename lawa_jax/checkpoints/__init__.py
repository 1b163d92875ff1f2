"""Reading anybody's Orbax checkpoints, and writing our own: the only importer of Orbax."""

from lawa_jax.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lawa_jax.checkpoints.discovery import list_steps, parse_address

__all__ = ["Checkpoint", "list_steps", "open_checkpoint", "parse_address"]
