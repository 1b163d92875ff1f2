"""Several processes as one: agreeing on things, starting up, and stopping together.

What travels here is small (names, digests, decisions) and goes through the coordination service of
`jax.distributed`, never through collectives of the devices: a background thread may speak here
while the main thread trains. Arrays travel in the compiled steps alone.
"""

from lawa_jax.distributed.group import ALONE, Alone, Group, together
from lawa_jax.distributed.launch import (
    await_verdict,
    current_group,
    initialize,
    joined,
    leave,
)

__all__ = [
    "ALONE",
    "Alone",
    "Group",
    "await_verdict",
    "current_group",
    "initialize",
    "joined",
    "leave",
    "together",
]
