"""Many averages in one pass over stored checkpoints, in bounded memory."""

from lawa_jax.streaming.execution import Done, Sink, run
from lawa_jax.streaming.plan import Plan, Target, make_plan

__all__ = ["Done", "Plan", "Sink", "Target", "make_plan", "run"]
