import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]

MEASURED = """
    import resource, sys
    import jax, numpy
    from lawa_jax.offline.prepare import prepare
    from lawa_jax.offline.recipe import window_recipe, AveragingOptions
    from pathlib import Path
    def peak():
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    recipe = window_recipe(sys.argv[1], k=int(sys.argv[3]))
    options = AveragingOptions(memory=int(sys.argv[4]))
    bound = prepare([recipe], options).estimate.memory_bound
    before = peak()
    prepare([recipe], options).written([Path(sys.argv[2])])
    print(peak() - before, bound)
"""


@pytest.mark.slow
def test_memory_stays_within_the_printed_bound_whatever_k(tmp_path):
    run = tmp_path / "run"
    generator = np.random.default_rng(0)
    for step in (1, 2):
        big = generator.standard_normal((4096, 16384), np.float32)  # 268 MB
        write_checkpoint(run / str(step), {"params": {"big": big}}, checksums=False)
    for step in range(3, 21):
        (run / str(step)).symlink_to(run / str(1 + step % 2))
    for k in (2, 20):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURED), run, tmp_path / f"out{k}", str(k),
             str(100 << 20)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        used, bound = map(int, done.stdout.split())
        assert bound <= 100 << 20
        assert used <= bound
