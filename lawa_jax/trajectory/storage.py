"""Directories on a local disk or an object store, behind one interface."""

import errno
import os
import stat

from etils import epath

from lawa_jax.errors import SelectionError

TMP_MARKER = ".orbax-checkpoint-tmp"
"""In the name of every directory that is not finished; readers of Orbax checkpoints ignore it."""
COMMIT_MARKER = "commit_success.txt"


def is_object_store(path: epath.PathLike) -> bool:
    """Whether `path` is on an object store, where a rename is not atomic (``gs://...``)."""
    return "://" in str(path)


def as_path(path: epath.PathLike) -> epath.Path:
    """A local or object-store path.

    Raises:
      SelectionError: a scheme nobody has taught epath.
    """
    try:
        return epath.Path(path)
    except KeyError:
        raise SelectionError(
            f"{path}: expected a local path or one of gs://, s3://, az://, hf://"
        ) from None


def open_regular(path: str) -> int:
    """A descriptor of a regular file, to be read; close it.

    Waiting for a pipe or reading a device is never what is wanted of a checkpoint's file.

    Raises:
      OSError: there is none, or it is something else.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "expected a regular file, found a pipe or device", path)
    return fd


def read_regular(path: epath.PathLike) -> bytes:
    """The content of a small file, local or on an object store; see `open_regular`."""
    if is_object_store(path):
        return bytes(epath.Path(path).read_bytes())
    with os.fdopen(open_regular(os.fspath(path)), "rb") as file:
        return file.read()


class Listing:
    """Directories, each listed once: a run of hundreds of steps is asked about again and again."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, bool]] = {}

    def entries(self, path: epath.Path) -> dict[str, bool]:
        """What is in a directory, sorted: whether each name is a directory itself.

        Raises:
          OSError: it is no directory, or may not be listed.
        """
        key = os.fspath(path)
        if key not in self._entries:
            self._entries[key] = dict(sorted(_entries(path)))
        return self._entries[key]

    def directories(self, path: epath.Path) -> list[str]:
        """Names of the directories in a directory, sorted."""
        return [name for name, is_directory in self.entries(path).items() if is_directory]


def _entries(path: epath.Path) -> list[tuple[str, bool]]:
    if is_object_store(path):
        return [(child.name, child.is_dir()) for child in path.iterdir()]
    # Half the cost of pathlib's objects, which counts where a step has thousands of leaves.
    with os.scandir(path) as found:
        return [(entry.name, entry.is_dir()) for entry in found]
