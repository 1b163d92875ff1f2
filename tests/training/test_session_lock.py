"""Two sessions in one run exclude each other, and a dead one holds nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from etils import epath

from lawa_jax.distributed import ALONE
from lawa_jax.errors import OutputExistsError
from lawa_jax.training.session_lock import HOLDER, held

HOLDING = """
    import sys
    from etils import epath
    from lawa_jax.distributed import ALONE
    from lawa_jax.training.session_lock import held
    with held(epath.Path(sys.argv[1]), ALONE):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDING), str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_the_run_and_changes_nothing(holder, tmp_path):
    run = epath.Path(tmp_path / "run")
    before = (run / HOLDER).read_text()
    with (
        pytest.raises(OutputExistsError, match=f"another session .*process {holder.pid} on "),
        held(run, ALONE),
    ):
        pytest.fail("two sessions hold one run")
    assert (run / HOLDER).read_text() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_system_frees_what_a_dead_session_held(holder, tmp_path, number):
    run = epath.Path(tmp_path / "run")
    holder.send_signal(number)
    holder.wait()
    with held(run, ALONE):
        assert json.loads((run / HOLDER).read_text())["pid"] == os.getpid()


def test_a_session_that_did_nothing_leaves_nothing(tmp_path):
    run = epath.Path(tmp_path / "a" / "run")
    with pytest.raises(ZeroDivisionError), held(run, ALONE):
        raise ZeroDivisionError
    assert not run.exists()
    run.mkdir(parents=True)
    with held(run, ALONE):
        pass
    assert run.exists()


def test_a_holder_that_cannot_be_read_is_still_one(holder, tmp_path):
    run = epath.Path(tmp_path / "run")
    (run / HOLDER).write_text("{")
    with pytest.raises(OutputExistsError, match="it does not say which"), held(run, ALONE):
        pytest.fail("two sessions hold one run")
