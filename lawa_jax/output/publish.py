"""Publishing a finished directory: it appears whole under its name, or not at all."""

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lawa_jax.errors import OutputExistsError
from lawa_jax.trajectory.storage import TMP_MARKER

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


def _old_name(directory: Path) -> Path:
    """A new name beside `directory`, which every reader of Orbax checkpoints ignores."""
    return directory.with_name(f"{directory.name}{TMP_MARKER}-old-{uuid.uuid4().hex[:12]}")


@functools.cache
def _renameat2() -> Callable[[bytes, bytes, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]
    return lambda source, target, flags: function(_AT_FDCWD, source, _AT_FDCWD, target, flags)


def _rename_with(source: Path, target: Path, flags: int) -> bool:
    """renameat2; False where kernel or file system do not know the flag."""
    function = _renameat2()
    if function is None:
        return False
    if function(os.fsencode(source), os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _exists_error(target: Path) -> OutputExistsError:
    return OutputExistsError(
        f"{target} already exists and is never replaced silently; choose another name or say "
        "overwrite (--overwrite)"
    )


def check_free(target: Path, *, overwrite: bool) -> None:
    """Refuse early what `publish` would refuse at the end.

    Raises:
      OutputExistsError: `target` exists and may not be overwritten.
    """
    if not overwrite and os.path.lexists(target):
        raise _exists_error(target)


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename a directory; never replaces anything, not even an empty directory.

    Raises:
      OutputExistsError: `target` exists.
    """
    try:
        if _rename_with(source, target, _RENAME_NOREPLACE):
            return
        # Making the directory claims the name; renaming onto it only succeeds while it is empty.
        os.mkdir(target)
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                os.rmdir(target)
            raise
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _exists_error(target) from error
        raise


def _replace(source: Path, target: Path) -> None:
    """Swap in a new directory and remove the old one only after that succeeded."""
    if _rename_with(source, target, _RENAME_EXCHANGE):
        old = source
    else:
        old = _old_name(target)
        os.rename(target, old)
        try:
            rename_no_replace(source, target)
        except BaseException:
            rename_no_replace(old, target)
            raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # What cannot be removed stays behind, under a name that readers ignore.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def publish(staging: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished, synced directory its final name, atomically.

    Raises:
      OutputExistsError: `target` exists and `overwrite` is false.
    """
    if overwrite and os.path.lexists(target):
        _replace(staging, target)
    else:
        rename_no_replace(staging, target)
    # Published; if the name cannot be made durable now, the kernel still writes it soon.
    with contextlib.suppress(OSError):
        fsync_path(str(target.parent))


def fsync_path(path: str) -> None:
    """Make a file, or the names in a directory, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    # os.walk would pass over a directory that cannot be listed, and nothing in it be synced.
    raise error


def fsync_tree(root: Path) -> None:
    """Make all files and names below a directory durable."""
    names = [
        os.path.join(folder, name)
        for folder, _, files in os.walk(root, onerror=_raise)
        for name in (*files, "")  # "": the directory itself
    ]
    # Together they share commits of the journal: five times faster than one by one.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(fsync_path, names))
