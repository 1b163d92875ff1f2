"""Memory of converting one checkpoint: the model's tensors bound it, not the optimizer's."""

import os
import threading

import pytest
import torch

from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.trajectory.formats import torch_files

MODEL, OPTIMIZER = 20_000_000, 300_000_000  # bytes


def anonymous_bytes():
    """Resident memory without mapped file pages."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * int(fields["RssAnon"].split()[0])


def peak_of(action):
    start = highest = anonymous_bytes()
    done = threading.Event()

    def watch():
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return highest - start


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells memory there")
def test_memory_is_bounded_by_the_model(tmp_path, monkeypatch):
    model = {str(i): torch.zeros(MODEL // 16) for i in range(4)}
    moments = {"exp_avg": torch.ones(OPTIMIZER // 4)}
    torch.save({"model": model, "optimizer": moments}, tmp_path / "checkpoint1.pt")
    del model, moments

    def convert(run):
        convert_trajectory(tmp_path / "checkpoint1.pt", run, state_dicts.convert, ConvertOptions())

    bound = 1.2 * MODEL + 100e6
    assert peak_of(lambda: convert(tmp_path / "run")) <= bound
    # The measurement notices a file that is read whole.
    original = torch_files._load
    monkeypatch.setattr(
        torch_files, "_load", lambda *a, mapped, **options: original(*a, mapped=False, **options)
    )
    assert peak_of(lambda: convert(tmp_path / "again")) > bound
