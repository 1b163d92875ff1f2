"""Threads of a pass."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lawa_jax.offline import streaming
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import window_recipe
from lawa_jax.output import StepWriter, write_checkpoint


def test_interrupted_while_a_thread_starts_it_is_waited_for(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / str(step), {"a": np.full((4, 4), step, np.float32)})
    writing, go_on, happened = threading.Event(), threading.Event(), []
    write, abort = StepWriter.write, StepWriter.abort

    def slow_write(self, *arguments):
        writing.set()
        assert go_on.wait(60)
        digest = write(self, *arguments)
        happened.append("written")
        return digest

    def logged_abort(self):
        happened.append("aborted")
        abort(self)

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *arguments):
            super().submit(*arguments)
            assert writing.wait(60)
            # A signal between the start of a thread and the pool's taking note of it.
            self._threads.clear()
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(StepWriter, "write", slow_write)
    monkeypatch.setattr(StepWriter, "abort", logged_abort)
    monkeypatch.setattr(streaming, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([window_recipe(tmp_path / "run", k=2)]).written([tmp_path / "out"])
    assert happened == ["written", "aborted"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
