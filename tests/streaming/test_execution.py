"""Threads of a pass."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lawa_jax.checkpoints import StreamingWriter, write_checkpoint
from lawa_jax.jobs import window_job
from lawa_jax.streaming import execution
from lawa_jax.trajectory import run_jobs


def test_interrupted_while_a_thread_starts_it_is_waited_for(tmp_path, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / str(step), {"a": np.full((4, 4), step, np.float32)})
    writing, go_on, happened = threading.Event(), threading.Event(), []
    write, abort = StreamingWriter.write, StreamingWriter.abort

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

    monkeypatch.setattr(StreamingWriter, "write", slow_write)
    monkeypatch.setattr(StreamingWriter, "abort", logged_abort)
    monkeypatch.setattr(execution, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([window_job(tmp_path / "run", k=2)], [tmp_path / "out"])
    assert happened == ["written", "aborted"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
