"""An open connection to process 0, whose end is the first sign of its death.

JAX ends the other processes by itself when process 0 dies, since its coordination service dies with
it, but by `abort` and with a stack trace. The kernel closes a dead process's sockets at once, which
leaves time to say what happened first.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

_FAREWELL = b"."


class Door:
    """Process 0's side: keeps connections open as long as it lives."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name="lawa-door", daemon=True).start()

    @property
    def port(self) -> int:
        """Where the others find it."""
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._open.append(self._listener.accept()[0])

    def close(self) -> None:
        """Part from the others: silence is meant from now on."""
        with contextlib.suppress(OSError):
            # Closing alone would leave the thread, and with it the port, waiting.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.sendall(_FAREWELL)
                connection.close()


def hold(host: str, port: int, gone: Callable[[], None], *, timeout: float = 5.0) -> bool:
    """Connect to a `Door` and call `gone`, in a thread, if it falls silent without a farewell.

    Returns:
      Whether the connection could be made: a firewall may be in between.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout)
    except OSError:
        return False
    connection.settimeout(None)
    # A host that loses power closes nothing: let the kernel ask now and then.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def listen() -> None:
        with connection:
            try:
                farewell = connection.recv(1)
            except OSError:
                farewell = b""
        if farewell != _FAREWELL:
            gone()

    threading.Thread(target=listen, name="lawa-lifeline", daemon=True).start()
    return True
