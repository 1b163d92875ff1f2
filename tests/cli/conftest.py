"""Runs of two kinds, and the command line, called in this process."""

import json
import signal
from typing import NamedTuple

import numpy as np
import pytest

from lawa_jax import script
from lawa_jax.cli.main import execute
from lawa_jax.output import write_checkpoint


class Finished(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def lawa(capsys):
    """Call as ``lawa("ls", path)``; an exception that would be a traceback is one here too."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            script.run(lambda: execute([str(a) for a in argv]))
        code = ended.value.code
        return Finished(0 if code is None else code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, handler)


def model(seed):
    generator = np.random.default_rng(seed)
    return {
        "params": {
            "dense": {
                "kernel": generator.standard_normal((20, 6), np.float32),
                "bias": generator.standard_normal(6, np.float32),
            },
            "layers": {str(i): generator.standard_normal(3, np.float32) for i in range(11)},
        },
        "batch_stats": {
            "bn": {"mean": np.full(4, seed, np.float32), "var": np.ones(4, np.float32)}
        },
    }


MODEL_BYTES = 4 * (20 * 6 + 6 + 11 * 3 + 8)


@pytest.fixture(scope="session")
def model_bytes():
    return MODEL_BYTES


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Ten epochs as training saves them, with a metric that is best at 4."""
    run = tmp_path_factory.mktemp("runs") / "resnet"
    for step in range(1, 11):
        metrics = {"val/top1": 1 - abs(step - 4) / 10, "val/loss": abs(step - 4) / 10}
        write_checkpoint(run / "epochs" / str(step), model(step), metrics=metrics)
    return run


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """A Linen training state with optimizer and key by a plain CheckpointManager, in bfloat16."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from flax.training.train_state import TrainState

    root = tmp_path_factory.mktemp("foreign") / "run"
    params = {"dense": {"kernel": jnp.ones((4, 3), jnp.bfloat16)}}
    with ocp.CheckpointManager(root, item_names=("state", "ema")) as manager:
        for step, value in ((10, 1.0), (20, 1.0078125), (30, 1.015625)):
            scaled = jax.tree.map(lambda x, v=value: jnp.full_like(x, v), params)
            state = TrainState.create(apply_fn=print, params=scaled, tx=optax.adam(1e-3))
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    ema=ocp.args.StandardSave({"params": jax.tree.map(lambda x: -x, scaled)}),
                ),
            )
    return root
