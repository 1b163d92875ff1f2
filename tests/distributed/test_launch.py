"""When processes look for others."""

import pytest

from lawa_jax.distributed import ALONE, await_verdict, initialize, launch
from lawa_jax.distributed.launch import launched
from lawa_jax.errors import ConfigError


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"JAX_COORDINATOR_ADDRESS": "host:1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "host:1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"},
    ],
)
def test_launchers_are_recognised(environment):
    assert launched(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_PLATFORMS": "cpu"},
        {"SLURM_NTASKS": "1", "JAX_PLATFORMS": "cpu"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    ],
)
def test_a_process_alone_is_left_alone(environment):
    assert not launched(environment)


def test_one_process_needs_no_coordinator():
    assert initialize("127.0.0.1:1", 1, 0) is ALONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 0), "--process_count and --process_index go together; found host:1, N"),
        (("host", 2, 0), "--coordinator: expected HOST:PORT, found 'host'"),
        (("host:1", 2, 2), r"--process_index: expected 0\.\.1, found 2"),
    ],
)
def test_half_an_answer_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        initialize(*arguments)


def test_a_timeout_without_a_heartbeat_is_refused():
    with pytest.raises(ConfigError, match=r"--peer_timeout: expected 1 second or more, found 0\.2"):
        initialize("127.0.0.1:1", 2, 0, peer_timeout=0.2)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), [15.0]),
        (RuntimeError("NCCL operation failed: remote process exited"), [15.0]),
        (ZeroDivisionError("division by zero"), []),
    ],
)
def test_only_a_failed_collective_waits_for_the_heartbeats(monkeypatch, error, seconds):
    class Calls:
        patience = 15.0

    slept = []
    monkeypatch.setattr(launch, "_joined", (Calls, None))
    monkeypatch.setattr(launch.time, "sleep", slept.append)
    await_verdict(error)
    assert slept == seconds
