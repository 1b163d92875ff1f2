"""Where process 0 is found, and on which of its addresses it listens."""

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Sequence

from lawa_jax.errors import ConfigError

INITIALIZATION_TIMEOUT = 300
"""Seconds to wait for all processes to start."""


@dataclasses.dataclass(frozen=True)
class Address:
    """How a process joins the others.

    Attributes:
      host, port: of the coordination service of process 0.
      count: number of processes.
      index: of this process.
      devices: local devices that the launcher gives to this process; None for all.
    """

    host: str
    port: int
    count: int
    index: int
    devices: Sequence[int] | None

    @property
    def text(self) -> str:
        """``host:port``."""
        return _join(self.host, self.port)


def resolve(coordinator: str | None, count: int | None, index: int | None) -> Address:
    """What was given, completed by what the launcher says (in its environment).

    Raises:
      ConfigError: the launcher does not say all of it.
    """
    # JAX has no public function that says what `jax.distributed.initialize` would use.
    from jax._src.clusters import ClusterEnv

    devices: Sequence[int] | None = None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None or count is None or index is None:
        coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, count, index, None, None, INITIALIZATION_TIMEOUT
        )
    if coordinator is None or count is None or index is None:
        raise ConfigError(
            "the launcher's environment names several processes but not all of their coordinator "
            f"({coordinator}), number ({count}) and this one's index ({index}); give --coordinator,"
            " --process_count and --process_index"
        )
    host, _, port = coordinator.rpartition(":")
    return Address(host.strip("[]"), int(port), count, index, devices)


def bind(host: str, port: int) -> str | None:
    """The one address that process 0 listens on; None where JAX decides.

    It takes ``JAX_COORDINATOR_BIND_ADDRESS`` where that is set. It has to listen on all addresses
    where `host` is not an address of this machine as it sees itself (a forwarded one), or is a name
    that means the loopback here and something else to the other machines.
    """
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, _, _, place = found[0]
        with socket.socket(family, kind) as probe:
            probe.bind((place[0], 0))
    except OSError:
        return None
    here = str(place[0])
    named = host == "localhost" or here == host
    if ipaddress.ip_address(here.partition("%")[0]).is_loopback and not named:
        return None
    return _join(here, port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
