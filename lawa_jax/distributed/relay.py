"""A local port that leads to the coordination service of process 0.

When process 0 dies, JAX's client of the service aborts the process as soon as its connection
closes: a message of C++ with a stack trace, and the exit code of SIGABRT. The callback that would
replace it (`missed_heartbeat_callback`) cannot be called from Python in jaxlib 0.10, which has no
conversion for its argument. So the connection passes through this process first, which sees the end
of process 0 before the client does and can say what happened.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

_CHUNK = 1 << 16


class Relay:
    """Carries the bytes of connections made to `address` to process 0 and back.

    Args:
      host, port: of the coordination service.
      lost: called, in a thread, when process 0 ends an open connection; the local side of it stays
        open until `lost` has returned.
      timeout: seconds after which a host that no longer answers counts as gone.
    """

    def __init__(self, host: str, port: int, lost: Callable[[], None], *, timeout: float) -> None:
        self._far, self._lost, self._timeout = (host, port), lost, timeout
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """What JAX connects to."""
        _start(self._accept)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            # Closing alone would leave the thread, and with it the port, waiting.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(self._far, timeout=self._timeout)
                except OSError:
                    # Process 0 has not started yet; JAX tries again until its own timeout.
                    near.close()
                    continue
                far.settimeout(None)
                self._notice_silence(far)
                _start(self._send, near, far)
                _start(self._receive, near, far)

    def _notice_silence(self, far: socket.socket) -> None:
        # A host that loses power closes nothing: the kernel has to ask.
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            third = max(1, round(self._timeout / 3))
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, third)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, third)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000 * third)

    def _send(self, near: socket.socket, far: socket.socket) -> None:
        # Whatever breaks here is noticed by `_receive`, too.
        with contextlib.suppress(OSError):
            while data := near.recv(_CHUNK):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _receive(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_CHUNK):
                near.sendall(data)
        if not _closed(near):
            self._lost()
        with contextlib.suppress(OSError):
            # Closing alone would leave `_send` waiting, and the connection open with it.
            near.shutdown(socket.SHUT_RDWR)
        near.close()
        far.close()


def _closed(near: socket.socket) -> bool:
    """Whether JAX has closed its side: then the end of the connection is no death."""
    try:
        return near.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _start(work: Callable[..., None], *arguments: socket.socket) -> None:
    threading.Thread(target=work, args=arguments, name="lawa-relay", daemon=True).start()
