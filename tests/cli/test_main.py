"""The command as users start it: a process of its own, with its streams and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["ls", "inspect", "average", "sweep", "diff", "verify"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    for step in (1, 2, 3):
        write_checkpoint(run / str(step), {"w": np.full(3, step, np.float32)})
    return run


def lawa(*argv, **options):
    done = subprocess.run(
        [sys.executable, "-m", "lawa_jax.cli.main", *map(str, argv)], check=False, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_from_listing_to_verifying(run, tmp_path):
    assert [row["step"] for row in json.loads(lawa("ls", run, "--json").stdout)] == [1, 2, 3]
    done = lawa("average", run, "-k", "2", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout.startswith("wrote out: 12 B from 24 B in")) == (0, True)
    assert "uniform average of 2 checkpoints" in done.stderr
    # The record says where the sources are, whatever the directory it was made or checked in.
    assert lawa("verify", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
def test_help_and_unknown_flags(command):
    helped = lawa(*command, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: lawa" in helped.stdout
    places = ["x"] * {"diff": 2}.get("".join(command), 1) if command else []
    more = ["--end", "5"] if command == ["sweep"] else []
    unknown = lawa(*command, *places, *more, "--frobnicate")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "Unrecognized options: --frobnicate" in unknown.stderr


def test_help_tells_the_exit_codes():
    assert "130/143 signal" in lawa("--help").stdout


HEAVY = ("jax", "jaxlib", "flax", "optax", "torch", "orbax")


@pytest.mark.parametrize(
    "argv",
    [
        ["ls", "RUN", "--json"],
        ["inspect", "RUN@2"],
        ["average", "RUN", "-k", "2", "-o", "OUT"],
        ["diff", "RUN@1", "RUN@2"],
    ],
    ids=lambda argv: argv[0],
)
def test_nothing_heavy_is_imported(run, tmp_path, argv):
    places = {"RUN": str(run), "RUN@1": f"{run}@1", "RUN@2": f"{run}@2", "OUT": tmp_path / "out"}
    code = f"""
import sys
from lawa_jax.cli.main import execute
assert not execute(sys.argv[1:])
heavy = set({HEAVY}) | {{"tensorstore"}}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(places.get(a, a)) for a in argv)], check=True, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]"


def test_progress_tells_bytes_and_rate(capsys):
    from lawa_jax.cli.options import progress

    with progress(4_000_000, "reading", delay=0.0) as advance:
        advance(1_000_000)
        advance(2_000_000)
    err = capsys.readouterr().err
    assert "reading" in err
    assert "4.00M" in err
    assert "B/s" in err


def test_a_reader_that_leaves_early_is_no_defect(run):
    code = f"{sys.executable} -m lawa_jax.cli.main inspect {run} --json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", code], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_object_stores_without_their_client_say_what_to_install():
    done = lawa("ls", "gs://bucket/run")
    assert done.returncode in (2, 3)
    assert done.stderr.startswith("error: ")
