"""What can go wrong, by whose doing, and the exit code a script answers with.

Every message names the place (leaf path, checkpoint, file), what was expected, what was found and
what to do about it. User mistakes are `ValueError` or `FileNotFoundError`, so that code which knows
nothing of this package catches them too.
"""

EXIT_OK = 0
EXIT_RUN_FAILED = 1
EXIT_USAGE = 2
EXIT_IO = 3


def reason_of(error: Exception) -> str:
    """The first line of what somebody else's code raised, for a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class LawaError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the scripts return."""

    exit_code = EXIT_RUN_FAILED


class SelectionError(LawaError, ValueError):
    """The requested checkpoints or weights do not exist or make no sense."""

    exit_code = EXIT_USAGE


class TreeMismatchError(LawaError, ValueError):
    """Trees that were to be combined differ in keys, shapes or dtypes."""

    exit_code = EXIT_USAGE


class ConfigError(LawaError, ValueError):
    """A configuration names an unknown field or an impossible value."""

    exit_code = EXIT_USAGE


class DataNotFoundError(LawaError, FileNotFoundError):
    """A data set is not where it was looked for."""

    exit_code = EXIT_USAGE


class CorruptDataError(LawaError, ValueError):
    """An example of a data set cannot be used: truncated, unreadable, or no image at all."""

    exit_code = EXIT_IO


class CheckpointNotFoundError(LawaError, FileNotFoundError):
    """A path holds no checkpoint, or a run holds none of the wanted ones."""

    exit_code = EXIT_USAGE


class OutputExistsError(LawaError, FileExistsError):
    """Writing would replace something that exists."""

    exit_code = EXIT_USAGE


class CorruptCheckpointError(LawaError, ValueError):
    """Stored bytes are missing, truncated or different from what was saved."""

    exit_code = EXIT_IO


class CheckpointWriteError(LawaError, OSError):
    """A checkpoint could not be written: disk full, permission denied."""

    exit_code = EXIT_IO

    def __str__(self) -> str:
        # Without the "[Errno 28]" that OSError puts in front: the text says what it is.
        return self.strerror or super().__str__()


class UnsafePickleError(LawaError, ValueError):
    """A pickle asks for something that weights do not need; it was not run."""

    exit_code = EXIT_IO


class NonFiniteError(LawaError, ValueError):
    """A checkpoint holds NaN or infinity where a weight was expected."""

    exit_code = EXIT_IO


class MissingDependencyError(LawaError, ImportError):
    """An optional package is needed; the message names the extra to install."""

    exit_code = EXIT_USAGE


class TrainingFailedError(LawaError, RuntimeError):
    """Training cannot go on: a non-finite loss, for instance."""

    exit_code = EXIT_RUN_FAILED


class PeerError(LawaError, RuntimeError):
    """Another process of the same program failed, or did not arrive in time."""

    exit_code = EXIT_RUN_FAILED


class EvaluationError(LawaError, RuntimeError):
    """An evaluator failed, or returned what are no metrics."""

    exit_code = EXIT_RUN_FAILED
