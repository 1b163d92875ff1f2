"""Describing a TPU slice that is not there, so that XLA compiles for it.

Peak rates are the published ones of https://cloud.google.com/tpu/docs (v4, v5e, v5p, v6e): bfloat16
operations, memory, and what a chip sends over the inter-chip links in one direction.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from lawa_jax.errors import ConfigError, MissingDependencyError


class Chip(NamedTuple):
    """Peak rates of one chip.

    Attributes:
      flops: bfloat16 operations per second.
      memory: bytes of HBM.
      bandwidth: bytes per second to and from it.
      links: bytes per second sent to other chips of the slice.
      sides: dimensions of its slices.
      most: chips of the largest slice.
    """

    flops: float
    memory: int
    bandwidth: float
    links: float
    sides: int
    most: int


CHIPS = {
    "v4": Chip(275e12, 32 << 30, 1228e9, 300e9, 3, 4096),
    "v5e": Chip(197e12, 16 << 30, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, 95 << 30, 2765e9, 600e9, 3, 8960),
    "v6e": Chip(918e12, 32 << 30, 1640e9, 400e9, 2, 256),
}


class Slice(NamedTuple):
    """A named slice: its chips' peak rates and its devices, to be compiled for."""

    name: str
    chip: Chip
    devices: list[Any]


def parse_slice(name: str) -> tuple[str, Chip]:
    """``"v5e:16x16"`` as the generation and its chip.

    Raises:
      ConfigError: another form, an unknown generation, or a shape that it does not have: the
        compiler would end the process.
    """
    match = re.fullmatch(r"(v\d\w*):(\d+)x(\d+)(x(\d+))?", name)
    if match is None or match.group(1) not in CHIPS:
        raise ConfigError(
            f"--plan: expected GENERATION:SHAPE such as v5e:16x16 (of {', '.join(CHIPS)}), found "
            f"{name!r}"
        )
    generation, chip = match.group(1), CHIPS[match.group(1)]
    sides = [int(side) for side in name.partition(":")[2].split("x")]
    if len(sides) > chip.sides or not 0 < math.prod(sides) <= chip.most:
        raise ConfigError(
            f"--plan {name}: a {generation} slice has at most {chip.sides} sides of 1 or more "
            f"chips, and at most {chip.most} chips together; choose such a shape"
        )
    return generation, chip


def describe(name: str) -> Slice:
    """The devices of a slice. Call before any device is used; this process then has CPUs only.

    Raises:
      ConfigError: no such slice.
      MissingDependencyError: libtpu, which holds the compiler, is not installed.
    """
    _, chip = parse_slice(name)
    if importlib.util.find_spec("libtpu") is None:
        raise MissingDependencyError(
            "--plan compiles with libtpu, which is not installed; pip install 'lawa-jax[tpu-plan]'"
        )
    # Without these, libtpu asks the metadata server of a cloud this machine need not be in.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        # No chip is used, so that others may be compiling at the same time.
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        described = topologies.get_topology_desc(name, platform="tpu")
    except Exception as error:
        raise ConfigError(f"--plan {name}: there is no such slice ({error})") from error
    return Slice(name, chip, list(described.devices))
