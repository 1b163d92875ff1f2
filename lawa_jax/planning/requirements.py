"""Compiling a task's steps for a slice: what they need, and the least time they take."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lawa_jax.averaging import device
from lawa_jax.distributed import ALONE
from lawa_jax.errors import LawaError
from lawa_jax.planning.collectives import Collective, collectives, link_bytes, totals
from lawa_jax.planning.topology import Slice
from lawa_jax.training.mesh import Placement
from lawa_jax.training.task import Task


class StepPlan(NamedTuple):
    """One compiled step; figures are per device.

    Attributes:
      name: ``train``, ``evaluate``, ...
      arguments, temporaries, code: bytes of memory; results that reuse arguments count once.
      flops: operations, as XLA counts them.
      bytes_accessed: memory traffic, as XLA counts it: what stays in on-chip memory included.
      messages: the collectives.
      link_bytes: bytes sent to other devices at least.
    """

    name: str
    arguments: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    messages: list[Collective]
    link_bytes: float

    @property
    def memory(self) -> int:
        """Bytes of device memory."""
        return self.arguments + self.temporaries + self.code

    def seconds(self, slice_: Slice) -> dict[str, float]:
        """Time at the chip's peak rates, by what it is spent on; a step takes the longest of them
        at least, and their sum and more where they do not overlap."""
        chip = slice_.chip
        return {
            "compute": self.flops / chip.flops,
            "memory": self.bytes_accessed / chip.bandwidth,
            "links": self.link_bytes / chip.links,
        }


def placement(slice_: Slice, *, fsdp: int = 1) -> Placement:
    """Where a task to be planned puts its arrays."""
    return Placement(slice_.devices, fsdp=fsdp, group=ALONE)


def batch_shapes(example: dict[str, Any], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of arrays like those of `example`."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype)
        for name, value in example.items()
    }


def plan_steps(
    task: Task,
    slice_: Slice,
    *,
    train: dict[str, Any],
    evaluate: dict[str, Any],
    only: tuple[str, ...] = ("train", "evaluate", "recalibrate", "average"),
) -> Iterator[StepPlan]:
    """Compile the steps of a task one after the other.

    Args:
      task: made with `placement`.
      slice_: what to compile for.
      train, evaluate: shapes and dtypes of a whole batch by name.
      only: names of steps.

    Raises:
      LawaError: a step does not compile, for want of memory for instance; says which and why.
    """
    place = task.place
    state = place.abstract_state(jax.eval_shape(task.init))
    batch, eval_batch = place.abstract_batch(train), place.abstract_batch(evaluate)
    key = place.abstract_state(jax.eval_shape(lambda: jax.random.key(0)))
    rate = place.abstract_state(jax.ShapeDtypeStruct((), jnp.float32))
    steps: dict[str, Callable[[], Any]] = {
        "train": lambda: task.train_step.lower(state, batch, rate, key),  # type: ignore[attr-defined]
        "evaluate": lambda: task.eval_step.lower(state["model"], eval_batch),  # type: ignore[attr-defined]
        "average": lambda: device.lower_addition(state["model"]),
    }
    if task.moments is not None:
        moments = task.moments
        steps["recalibrate"] = lambda: moments.lower(state["model"], batch)  # type: ignore[attr-defined]
    for name in only:
        if name in steps:
            yield _compile(name, steps[name], place.device_count)


def repeated(step: StepPlan, part: StepPlan, times: int) -> StepPlan:
    """A step with loops, whose body XLA's figures count once, at the cost of its parts.

    Args:
      step: as it will run; its memory is right.
      part: the same without loops, of the samples of one turn.
      times: turns. What is done once a step (the optimizer's update) counts so often, too.
    """
    return step._replace(
        flops=times * part.flops,
        bytes_accessed=times * part.bytes_accessed,
        messages=times * part.messages,
        link_bytes=times * part.link_bytes,
    )


def _compile(name: str, lower: Callable[[], Any], devices: int) -> StepPlan:
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        why = "does not fit into memory" if "RESOURCE_EXHAUSTED" in text else "does not compile"
        raise LawaError(f"the {name} step {why}: {text[:600]}") from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    messages = collectives(compiled.as_text())
    return StepPlan(
        name,
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        float(cost.get("flops", 0.0)),
        float(cost.get("bytes accessed", 0.0)),
        messages,
        link_bytes(messages, devices),
    )


def describe_step(step: StepPlan, slice_: Slice, batch_size: int) -> str:
    """One step for people."""
    chip, seconds = slice_.chip, step.seconds(slice_)
    bound = max(seconds.values())
    which = max(seconds, key=lambda name: seconds[name])
    fits = "fits" if step.memory <= chip.memory else "DOES NOT FIT"
    lines = [
        f"{step.name}:",
        f"  memory    {_gib(step.memory)} of {_gib(chip.memory)} a device, {fits} "
        f"(arguments {_gib(step.arguments)}, temporaries {_gib(step.temporaries)}, "
        f"code {_gib(step.code)})",
        f"  compute   {step.flops / 1e12:.3f} TFLOP, {1e3 * seconds['compute']:.3f} ms at peak",
        f"  traffic   {step.bytes_accessed / 1e9:.3f} GB, {1e3 * seconds['memory']:.3f} ms at peak",
        f"  links     {step.link_bytes / 1e6:.3f} MB sent, {1e3 * seconds['links']:.3f} ms at peak",
    ]
    for operation, (count, nbytes) in totals(step.messages).items():
        lines.append(f"            {count} {operation}, {nbytes / 1e6:.3f} MB of results")
    if not step.messages:
        lines.append("            no collectives")
    line = f"  bound     {1e3 * bound:.3f} ms by {which}"
    if step.name != "average" and bound > 0:
        line += f": at most {batch_size / bound:,.0f} samples/s on the slice"
    return "\n".join([*lines, line])


def largest_batch(
    step: StepPlan, half: StepPlan, slice_: Slice, batch_size: int, multiple: int
) -> int:
    """The largest batch of a step that should fit, by memory of a batch and of half of it.

    Memory of activations grows with the batch, the rest stays; what XLA makes of it may differ by
    some per cent, so compile the batch you choose.

    Args:
      step, half: compiled for `batch_size` samples and for half as many.
      slice_: what for.
      batch_size: samples on the whole slice.
      multiple: of what a batch has to be.
    """
    growth = (step.memory - half.memory) / (batch_size / 2)
    if growth <= 0:
        return batch_size
    fits = batch_size + (slice_.chip.memory - step.memory) / growth
    return max(0, int(fits // multiple) * multiple)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB"
