"""How every script ends: one clear message on stderr and the project's exit code."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from lawa_jax.display import printable
from lawa_jax.errors import EXIT_IO, EXIT_OK, EXIT_RUN_FAILED, EXIT_USAGE, LawaError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
# The last message printed.
_last: list[str] = []


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a script, which take seconds: a signal ends it at once, in one line.

    An exception would not do: inside the libraries that load it is swallowed, or ends in somebody
    else's traceback. There is nothing to clean up yet.
    """
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    word = b"interrupted" if signum == signal.SIGINT else b"terminated"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"error: " + word + b"\n")
    os._exit(128 + signum)


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it passes every ``except Exception``."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and exit: 0 ok, 1 run failed, 2 usage or selection, 3 I/O or corruption.

    SIGINT gives 130 and SIGTERM 143. Errors made on purpose (`LawaError`) and I/O errors become
    one message; anything else is a defect and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    _last.clear()
    try:
        code = main() or EXIT_OK
        sys.stdout.flush()
    except LawaError as error:
        code = fail(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not flush into the void at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BROKEN_PIPE
    except ImportError as error:
        # Without a name it is a library's own message: what to install for gs://, for instance.
        if error.name is not None:
            raise
        code = fail(str(error), EXIT_USAGE)
    except OSError as error:
        code = fail(_describe(error), EXIT_IO)
    except KeyboardInterrupt:
        code = fail("interrupted", EXIT_INTERRUPTED)
    except Terminated:
        code = fail("terminated", EXIT_TERMINATED)
    except Exception as error:
        if (distributed := _distributed()) is None:
            raise
        distributed.await_verdict(error)
        # The interpreter would wait for the other processes, which wait for this one.
        traceback.print_exc()
        code = fail(f"{type(error).__name__}: {error}", EXIT_RUN_FAILED)
    if (distributed := _distributed()) is not None:
        distributed.leave(code, " ".join(_last))
    sys.exit(code)


def _distributed() -> Any:
    """The module that speaks with other processes, if this program has joined any."""
    module = sys.modules.get("lawa_jax.distributed")
    return module if module is not None and module.joined() else None


def fail(message: str, code: int) -> int:
    """Print the message as this project prints errors; returns `code`."""
    _last[:] = [message]
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    return code


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated
