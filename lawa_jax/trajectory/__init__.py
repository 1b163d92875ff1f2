"""Anybody's stored trajectory behind one door: which steps there are, and what each holds.

This room reads. It never writes, and it needs neither JAX nor Orbax.
"""

from lawa_jax.trajectory.checkpoint import Checkpoint
from lawa_jax.trajectory.integrity import stored_digest, verify_checkpoint, verify_leaf
from lawa_jax.trajectory.run import Run, Runs, list_steps, open_checkpoint
from lawa_jax.trajectory.step_names import parse_address

__all__ = [
    "Checkpoint",
    "Run",
    "Runs",
    "list_steps",
    "open_checkpoint",
    "parse_address",
    "stored_digest",
    "verify_checkpoint",
    "verify_leaf",
]
