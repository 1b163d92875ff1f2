"""Starting `jax.distributed`: by itself on TPU pods, SLURM and GKE, by flags elsewhere."""

import functools
import glob
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from lawa_jax.distributed import address
from lawa_jax.distributed.group import ALONE, Group, Processes, agree
from lawa_jax.distributed.relay import Relay
from lawa_jax.distributed.roll_call import RollCall, end_process
from lawa_jax.errors import ConfigError

_joined: "tuple[RollCall, Relay | None] | None" = None


def initialize(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    peer_timeout: float = 60.0,
    arguments: Mapping[str, Any] | None = None,
    advice: str = "",
) -> Group:
    """Join the other processes of this program, if there are any. Call before using any device.

    Without arguments, a launcher that started several processes is recognised by what it puts into
    the environment: SLURM, Open MPI, TPU pods (Cloud TPU VMs and GKE, multislice included), or
    JAX's own ``JAX_COORDINATOR_ADDRESS``. Where there is none, the process is alone.

    Args:
      coordinator: ``host:port`` of process 0, elsewhere.
      process_count: number of processes, elsewhere.
      process_index: of this process, from 0, elsewhere.
      peer_timeout: seconds without a heartbeat after which a process counts as dead and the others
        stop.
      arguments: what this process was asked to do, as JSON values by name; has to be the same in
        all processes.
      advice: what to do after a process has died, put behind "Start all of them again".

    Raises:
      ConfigError: some of the three arguments without the others, or that make no sense; or
        `arguments` differ between the processes.
    """
    global _joined
    given = (coordinator, process_count, process_index)
    if any(v is not None for v in given):
        _check(coordinator, process_count, process_index)
        if process_count == 1:
            return ALONE
    elif not launched(os.environ):
        return ALONE
    if peer_timeout < 1:
        raise ConfigError(f"--peer_timeout: expected 1 second or more, found {peer_timeout:g}")
    import jax

    where = address.resolve(*given)
    if where.count == 1:
        return ALONE
    relay = None
    if where.index:
        relay = Relay(where.host, where.port, _lost, timeout=peer_timeout)
    _join(jax, where, relay, peer_timeout)
    calls = RollCall(
        _client(),
        where.index,
        where.count,
        timeout=peer_timeout,
        end=lambda reason: end_process(reason, advice),
    )
    _joined = calls, relay
    group = current_group()
    place = f"{socket.gethostname()}, pid {os.getpid()}"
    calls.places[:] = group.exchange("places", place)
    agree(group, arguments or {})
    return group


def _lost() -> None:
    # While the processes are still joining, JAX itself tells of it.
    if _joined is not None:
        _joined[0].lost()


def _join(jax: Any, where: "address.Address", relay: Relay | None, peer_timeout: float) -> None:
    # A recoverable service tells of dead processes instead of ending all with a stack trace.
    # JAX warns that this is experimental, which is nobody's concern but ours.
    level = jax.config.jax_logging_level
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_logging_level", "ERROR")
    try:
        jax.distributed.initialize(
            where.text if relay is None else relay.address,
            where.count,
            where.index,
            where.devices,
            heartbeat_timeout_seconds=round(peer_timeout),
            shutdown_timeout_seconds=round(peer_timeout),
            initialization_timeout=address.INITIALIZATION_TIMEOUT,
            coordinator_bind_address=address.bind(where.host, where.port),
        )
    except RuntimeError as error:
        raise ConfigError(
            f"process {where.index} could not join the others at {where.text}: {error}"
        ) from error
    finally:
        jax.config.update("jax_logging_level", level)


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started several processes of this program, or this is a TPU VM."""
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") not in ("", "1"):
            return True
    if environment.get("JAX_COORDINATOR_ADDRESS") or environment.get(
        "MEGASCALE_COORDINATOR_ADDRESS"
    ):
        return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    # On a TPU VM the metadata server knows the other hosts.
    has_chips = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    return has_chips and importlib.util.find_spec("libtpu") is not None


def _check(coordinator: str | None, count: int | None, index: int | None) -> None:
    if coordinator is None or count is None or index is None:
        raise ConfigError(
            "--coordinator, --process_count and --process_index go together; found "
            f"{coordinator}, {count}, {index}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not host or not colon or not port.isdigit():
        raise ConfigError(f"--coordinator: expected HOST:PORT, found {coordinator!r}")
    if not 0 <= index < count:
        raise ConfigError(f"--process_index: expected 0..{count - 1}, found {index}")


def _client() -> Any:
    # The coordination service has no public interface for values and barriers with a timeout;
    # Orbax reaches for it in the same way.
    from jax._src import distributed

    return distributed.global_state.client


@functools.cache
def _processes(index: int, count: int) -> Processes:
    return Processes(_client(), index, count)


def current_group() -> Group:
    """The processes of this program; `ALONE` where `initialize` found none."""
    if "jax" not in sys.modules:
        return ALONE
    import jax

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ALONE
    return _processes(jax.process_index(), jax.process_count())


def joined() -> bool:
    """Whether this process has joined others that `leave` would tell of its end."""
    return _joined is not None


def leave(code: int, message: str = "") -> None:
    """Part from the others, at the end of a program.

    With code 0 this waits for all to end. With another, the others are told why, and the process
    ends here: waiting for those that wait for us would take minutes.
    """
    if _joined is None:
        return
    calls, relay = _joined
    if code:
        calls.tell(message or f"ended with code {code}")
        _exit(code)
    import jax

    current_group().exchange("leave")
    calls.part()
    jax.distributed.shutdown()
    if relay is not None:
        relay.close()


def await_verdict(error: Exception) -> None:
    """After a failed collective: give the heartbeats time to show which process has died.

    The library under a collective only says that a connection was closed. Returns at once for
    other errors, and otherwise when nobody has died: then the error is this process's own.
    """
    if _joined is not None and _of_a_collective(error):
        time.sleep(_joined[0].patience)


def _of_a_collective(error: Exception) -> bool:
    text = str(error)
    return any(name in text for name in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED"))


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
