"""Writes a checkpoint again and again, killed (-9) at the 1st, 2nd, ... system call it makes.

Run as a script: ``python interrupted_writer.py DIRECTORY``; prints, as JSON, what a reader found
after each kill: for a new output and for one that replaces an older checkpoint.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from lawa_jax.errors import CheckpointNotFoundError
from lawa_jax.output import publish, write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint

root = Path(sys.argv[1])
OLD, NEW = (
    {"params": {"w": np.full((4, 3), value, np.float32), "b": np.full(2, value, np.float64)}}
    for value in (1, 2)
)
calls = 0


def deadly(function, limit):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def child(directory, limit):
    os.fsync = lambda fd: None  # slow, and a killed process loses nothing that was written
    for name in ("open", "pwrite", "ftruncate", "fsync", "mkdir", "rename", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name), limit))
    Path.write_text = deadly(Path.write_text, limit)
    publish._rename_with = deadly(publish._rename_with, limit)
    publish._remove = deadly(publish._remove, limit)
    write_checkpoint(directory, NEW, overwrite=True)
    os._exit(0)


def found(run):
    try:
        steps = list_steps(run)
    except CheckpointNotFoundError:
        return "nothing"
    if not steps:
        return "nothing"
    checkpoint = open_checkpoint(run)
    assert verify_checkpoint(checkpoint) == 2
    value = {float(x) for name in checkpoint.leaves for x in checkpoint.read_leaf(name).flat}
    return {1.0: "old", 2.0: "new"}[value.pop()] if len(value) == 1 else "mixed"


write_checkpoint(root / "old", OLD)
report = {"fresh": [], "overwrite": []}
for kind, outcomes in report.items():
    for limit in range(1, 1000):
        run = root / "run"
        if kind == "overwrite":
            shutil.copytree(root / "old", run / "epochs/7")
        pid = os.fork()
        if pid == 0:
            child(run / "epochs/7", limit)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            outcomes.append("finished: " + found(run))
            shutil.rmtree(run)
            break
        outcomes.append(found(run))
        shutil.rmtree(run, ignore_errors=True)
print(json.dumps(report))
