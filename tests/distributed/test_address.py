"""Where the processes meet, and that nothing listens wider than it must."""

import pytest

from lawa_jax.distributed import address
from lawa_jax.errors import ConfigError


def test_what_was_given_is_used():
    found = address.resolve("[::1]:12", 3, 2)
    assert (found.host, found.port, found.count, found.index) == ("::1", 12, 3, 2)
    assert found.text == "[::1]:12"


def test_the_launcher_says_the_rest(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "host[3-4]", "SLURM_NTASKS": "4",
        "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = address.resolve(None, None, None)
    assert (found.host, found.count, found.index) == ("host3", 4, 2)
    assert list(found.devices) == [0]


def test_half_a_launcher_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    with pytest.raises(ConfigError, match=r"coordinator \(host:1\), number \(None\)"):
        address.resolve(None, None, None)


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", "127.0.0.1:5"), ("localhost", "127.0.0.1:5"), ("127.0.0.3", "127.0.0.3:5")],
)
def test_the_loopback_stays_the_loopback(host, found):
    assert address.bind(host, 5) in (found, "[::1]:5")


def answer(*places):
    family = address.socket.AF_INET
    kind = address.socket.SOCK_STREAM
    return lambda *args, **kw: [(family, kind, 6, "", (place, 5)) for place in places]


def test_a_name_that_means_the_loopback_only_here_is_not_bound_to_it(monkeypatch):
    # As Debian's /etc/hosts does it: the others find another address under that name.
    monkeypatch.setattr(address.socket, "getaddrinfo", answer("127.0.1.1"))
    assert address.bind("node3", 5) is None


def test_an_address_of_another_machine_is_left_to_jax(monkeypatch):
    # TEST-NET-1: nobody has it, as with an address that a cloud forwards.
    monkeypatch.setattr(address.socket, "getaddrinfo", answer("192.0.2.1"))
    assert address.bind("192.0.2.1", 5) is None


def test_the_variable_of_jax_decides(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "[::]:5")
    assert address.bind("127.0.0.1", 5) is None
