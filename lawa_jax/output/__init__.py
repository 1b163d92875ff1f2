"""Writing checkpoints: staged aside, made durable, verified, and published whole or not at all."""

from lawa_jax.output.step_writer import StepWriter
from lawa_jax.output.tree_writer import write_checkpoint

__all__ = ["StepWriter", "write_checkpoint"]
