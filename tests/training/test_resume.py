import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lawa_jax.errors import ConfigError
from lawa_jax.output import write_checkpoint
from lawa_jax.training import resume
from lawa_jax.training.optim import sgd

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_task


def test_leaves_are_paired_by_name_into_the_containers_of_the_template():
    template = {"a": (np.zeros(2), [np.zeros(3)])}
    stored = {"a": {"1": {"0": np.ones(3)}, "0": np.full(2, 2.0)}}
    filled = resume.fill(template, stored, "RUN@1")
    assert isinstance(filled["a"], tuple)
    assert filled["a"][0].tolist() == [2, 2]
    assert filled["a"][1][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "RUN@1: leaf 'w' is missing"),
        ({"w": np.zeros(2), "v": np.zeros(1)}, "RUN@1: leaf 'v' is not expected"),
        ({"w": np.zeros(3)}, r"leaf 'w': expected float64\[2\], found float64\[3\]"),
        ({"w": np.zeros(2, np.float32)}, r"expected float64\[2\], found float32\[2\]"),
    ],
)
def test_a_state_of_another_model_is_refused(stored, message):
    with pytest.raises(ConfigError, match=message):
        resume.fill({"w": np.zeros(2)}, stored, "RUN@1")


def test_starting_from_a_checkpoint_takes_its_weights_and_a_fresh_optimizer(tmp_path):
    task = tiny_task(seed=0)
    other = tiny_task(seed=1).init()["model"]
    write_checkpoint(tmp_path / "average", other)
    state = resume.initial_model(str(tmp_path / "average"), task)
    assert np.array_equal(state["model"]["params"]["w"], other["params"]["w"])
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(state["opt_state"]))


def test_starting_from_another_models_checkpoint_is_refused(tmp_path):
    write_checkpoint(tmp_path / "other", {"params": {"v": np.zeros(3, np.float32)}})
    with pytest.raises(ConfigError, match=r"--init_from .*other.*leaf"):
        resume.initial_model(str(tmp_path / "other"), tiny_task())


def test_sgd_states_that_were_saved_under_former_names_resume():
    params = {"conv": {"w": np.arange(3.0, dtype=np.float32)}}
    template = {"model": params, "opt_state": sgd().init(params)}
    stored = {
        "model": params,
        "opt_state": {"momentum_buffer": {"conv": {"w": params["conv"]["w"] + 1}}},
    }
    filled = resume.fill(template, stored, "RUN@1")
    assert filled["opt_state"][1].trace["conv"]["w"].tolist() == [1, 2, 3]
    assert filled["model"]["conv"]["w"].tolist() == [0, 1, 2]
