"""Whether what is to be written fits on its disk, found out before it is begun."""

import errno
import os
import shutil

from etils import epath

from lawa_jax.display import human
from lawa_jax.errors import CheckpointWriteError
from lawa_jax.trajectory.storage import is_object_store

# Metadata and rounding up to file system blocks.
_SPARE_BYTES = 16 << 20


def check_space(
    directory: epath.PathLike, needed: int, remedy: str = "choose another disk"
) -> None:
    """Refuse to start what will not fit; object stores have no end.

    Args:
      directory: where it is to be written; it need not exist.
      needed: bytes.
      remedy: what to do, besides freeing some.

    Raises:
      CheckpointWriteError: names what is needed and what is free.
    """
    if is_object_store(directory) or not needed:
        return
    place = os.path.abspath(directory)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointWriteError(
            errno.ENOSPC,
            f"{directory}: {human(needed)} needed, {human(free)} free on that disk; free some, or "
            f"{remedy}",
        )
