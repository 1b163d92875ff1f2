"""The command in processes of its own: killed, interrupted, out of disk, without permission."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lawa_jax.offline.verify import verify
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"k{k}-end{end}-uniform" for end in (6, 9) for k in (2, 3)]

# Sends a signal to itself at the nth call of a method, then goes on with the command.
INTERRUPTED = """
    import os, sys
    from lawa_jax.cli.main import main
    from lawa_jax.output import destination, step_writer
    number, owner, method, at = int(sys.argv[1]), *sys.argv[2].split("."), int(sys.argv[3])
    kind = {"StepWriter": step_writer, "LocalDestination": destination}[owner]
    kind = getattr(kind, owner)
    calls, original = 0, getattr(kind, method)
    def interrupting(self, *args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)
    setattr(kind, method, interrupting)
    del sys.argv[1:4]
    main()
"""
LIMITED = """
    import resource, signal, sys
    from lawa_jax.cli.main import main
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk says EFBIG then, not a signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
    main()
"""


def python(code, *argv):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def contents(folder):
    """Every file below, by what is in it."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
MOMENTS = [
    ("StepWriter.write", 1),
    ("StepWriter.write", 9),
    ("StepWriter.finish", 1),
    ("LocalDestination.publish", 1),
]


@pytest.mark.parametrize("number", CODES, ids=lambda s: s.name)
@pytest.mark.parametrize(("method", "call"), MOMENTS)
def test_an_average_that_is_cut_short_leaves_nothing_that_looks_finished(
    lawa, run, tmp_path, number, method, call
):
    before, out = contents(run), tmp_path / "90"
    command = ["average", run, "-k", "3", "-o", out]
    done = python(INTERRUPTED, int(number), method, call, *command)
    assert done.returncode == CODES[number], done.stderr
    assert contents(run) == before
    assert not out.exists()
    assert list_steps(tmp_path) == []
    left = [p.name for p in tmp_path.iterdir()]
    if number == signal.SIGKILL:
        assert len(left) == 1
        assert left[0].startswith("90.orbax-checkpoint-tmp-")
    else:
        assert left == []
        assert done.stderr.splitlines()[-1] in ("error: terminated", "error: interrupted")
    # The next one cleans up behind it.
    assert lawa(*command).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["90"]
    assert verify(str(out)).leaves == 15


@pytest.mark.parametrize("number", CODES, ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("method", "call"), [("StepWriter.write", 21), ("LocalDestination.publish", 3)]
)
def test_a_sweep_that_is_cut_short_goes_on(lawa, run, tmp_path, number, method, call):
    before = contents(run)
    command = ["sweep", run, "-k", "2,3", "--end", "6,9", "-o", tmp_path]
    done = python(INTERRUPTED, int(number), method, call, *command)
    assert done.returncode == CODES[number], done.stderr
    assert contents(run) == before
    finished = [name for name in NAMES if (tmp_path / name).exists()]
    assert len(finished) == (call - 1 if "publish" in method else 0)
    published = {name: contents(tmp_path / name) for name in finished}
    for name in finished:
        assert verify_checkpoint(open_checkpoint(tmp_path / name)) == 15
    assert lawa(*command).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert verify(str(tmp_path / name)).leaves == 15
    for name, files in published.items():
        assert contents(tmp_path / name) == files, "what was published was not made again"


@pytest.mark.parametrize("limit", [100, 400])
def test_a_full_disk(run, tmp_path, limit):
    before = contents(run)
    done = python(LIMITED, limit, "average", run, "-k", "3", "-o", tmp_path / "out")
    assert done.returncode == 3
    assert f"error: cannot write {tmp_path / 'out'}: File too large" in done.stderr
    assert "nothing was published" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert contents(run) == before


def test_a_full_disk_in_a_sweep_which_then_goes_on(lawa, run, tmp_path):
    command = ["sweep", run, "-k", "2,3", "--end", "6,9", "-o", tmp_path]
    done = python(LIMITED, 400, *command)
    assert done.returncode == 3
    assert f"error: cannot write {tmp_path}" in done.stderr
    assert not any((tmp_path / name).exists() for name in NAMES)
    assert lawa(*command).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


def test_places_that_cannot_be_written_or_read(lawa, run, tmp_path):
    (tmp_path / "file").write_text("")
    done = lawa("average", run, "-o", tmp_path / "file" / "out")
    assert (done.code, f"cannot write {tmp_path / 'file' / 'out'}" in done.err) == (3, True)
    if os.geteuid() != 0:  # root may do anything
        (tmp_path / "sealed").mkdir(mode=0o555)
        done = lawa("average", run, "-o", tmp_path / "sealed" / "out")
        assert (done.code, "Permission denied" in done.err) == (3, True)
        (tmp_path / "hidden").mkdir(mode=0)
        done = lawa("ls", tmp_path / "hidden")
        assert (done.code, "Permission denied" in done.err) == (3, True)


def test_the_staging_of_a_living_process_is_left_alone(lawa, run, tmp_path):
    code = """
        import sys
        from lawa_jax.output.staging import new_staging
        from pathlib import Path
        path, lock = new_staging(Path(sys.argv[1]))
        print(path, flush=True)
        sys.stdin.read()
    """
    living = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    staging = Path(living.stdout.readline().strip())
    (tmp_path / "out.orbax-checkpoint-tmp-123").mkdir()  # of Orbax: none of ours
    assert lawa("average", run, "-o", tmp_path / "out").code == 0
    assert staging.is_dir()
    living.kill()
    living.communicate()
    assert lawa("average", run, "-o", tmp_path / "out", "--overwrite").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.orbax-checkpoint-tmp-123"]
