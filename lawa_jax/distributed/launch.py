"""Starting `jax.distributed`: by itself on TPU pods, SLURM and GKE, by flags elsewhere."""

import functools
import glob
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from lawa_jax.distributed.group import ALONE, Group, Processes
from lawa_jax.distributed.watch import Watch
from lawa_jax.errors import ConfigError

_watch: Watch | None = None


def initialize(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    peer_timeout: float = 60.0,
) -> Group:
    """Join the other processes of this program, if there are any. Call before using any device.

    Without arguments, a launcher that started several processes is recognised by what it puts into
    the environment: SLURM, Open MPI, TPU pods (Cloud TPU VMs and GKE, multislice included), or
    JAX's own ``JAX_COORDINATOR_ADDRESS``. Where there is none, the process is alone.

    Args:
      coordinator: ``host:port`` of process 0, elsewhere.
      process_count: number of processes, elsewhere.
      process_index: of this process, from 0, elsewhere.
      peer_timeout: seconds without a sign of life after which a process counts as dead and the
        others stop.

    Raises:
      ConfigError: some of the three arguments without the others, or that make no sense.
    """
    global _watch
    given = (coordinator, process_count, process_index)
    if any(v is not None for v in given):
        _check(coordinator, process_count, process_index)
        if process_count == 1:
            return ALONE
    elif not launched(os.environ):
        return ALONE
    import jax

    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
            # Ours speaks first and says what to do; JAX's aborts with a stack trace.
            heartbeat_timeout_seconds=round(10 * peer_timeout),
            shutdown_timeout_seconds=round(peer_timeout),
        )
    except RuntimeError as error:
        raise ConfigError(
            f"process {process_index if process_index is not None else '?'} could not join "
            f"the others at {coordinator or 'the coordinator its launcher names'}: {error}"
        ) from error
    group = current_group()
    if group.count > 1:
        _watch = Watch(
            _client(), group.index, group.count, timeout=peer_timeout, host=_coordinator_host()
        )
    return group


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


def _coordinator_host() -> str | None:
    from jax._src import distributed

    address: str | None = getattr(distributed.global_state, "coordinator_address", None)
    return None if address is None else address.rpartition(":")[0].strip("[]")


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
    return _watch is not None


def leave(code: int, message: str = "") -> None:
    """Part from the others, at the end of a program.

    With code 0 this waits for all to end. With another, the others are told why, and the process
    ends here: waiting for those that wait for us would take minutes.
    """
    if _watch is None:
        return
    if code:
        _watch.tell(message or f"ended with code {code}")
        _exit(code)
    import jax

    _watch.stop()
    jax.distributed.shutdown()


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
