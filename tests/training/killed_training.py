"""Trains the tiny task and kills itself (-9) at the n-th call of a function.

Run as a script: ``python killed_training.py RUN MODULE ATTRIBUTE N``; goes on with a run that has a
resume state.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

from etils import epath

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_task

from lawa_jax.training import resume
from lawa_jax.training.loop import train

run, module, attribute, limit = epath.Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
owner = importlib.import_module(module)
*path, name = attribute.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), 0


def deadly(*arguments, **named):
    global calls
    calls += 1
    if calls == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)


setattr(owner, name, deadly)
task = tiny_task()
restored = resume.restore_newest(run, task, lawa_k=1, say=print)
state, position = restored or (task.place.state(task.init()), resume.Position())
train(task, run, state, position, epochs=3, lawa_k=2, keep_resume=9)
