"""Compiling for TPU slices that are not there."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lawa_jax.errors import ConfigError
from lawa_jax.planning import requirements, scripts, topology
from lawa_jax.planning.collectives import Collective
from lawa_jax.planning.requirements import StepPlan, describe_step, largest_batch
from lawa_jax.planning.topology import CHIPS, Slice
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.text_config import TextConfig

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'lawa-jax[tpu-plan]'",
)

# In a process of its own: libtpu reads its environment when it is loaded.
COMPILE = """
import json, sys
import jax
from lawa_jax.planning import topology
from lawa_jax.planning import requirements
{setup}
found = {{}}
for step in requirements.plan_steps(task, slice_, train=train, evaluate=train, only={only}):
    found[step.name] = {{
        "memory": step.memory, "flops": step.flops,
        "messages": [[m.operation, m.nbytes, m.shapes] for m in step.messages],
    }}
shapes = jax.eval_shape(task.init)["model"]
found["params"] = [[list(x.shape), x.size * 4] for x in jax.tree.leaves(shapes["params"])]
json.dump(found, sys.stdout)
"""
RESNET = """
from lawa_jax.data.datasets import load_dummy
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.image_task import image_task
slice_ = topology.describe("{slice}")
batch = 64 * len(slice_.devices)
data = load_dummy(batch, num_classes=1000, image_size=224)
config = ImageConfig(batch_size=batch, compute_dtype="bfloat16")
task = image_task(config, data, requirements.placement(slice_))
train = requirements.batch_shapes(data.train[0], batch)
"""

ROBERTA = """
import numpy as np
from lawa_jax.data.masking import max_targets
from lawa_jax.data.text import dummy_text
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import text_task
slice_ = topology.describe("v5e:4x4")
data = dummy_text(128, max_tokens=512)
config = TextConfig(vocab_size=50265, batch_size=128, compute_dtype="bfloat16", scan=True,
                    remat=True)
task = text_task(config, data, requirements.placement(slice_, fsdp=4))
targets = np.zeros(max_targets(512), np.int32)
example = {"tokens": np.zeros(512, np.int32), "masked_positions": targets, "targets": targets}
train = requirements.batch_shapes(example, 128)
"""


def compiled(setup, only=("train", "average")):
    import json

    code = COMPILE.format(setup=setup, only=only)
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_step_is_bound_by_its_slowest_part():
    chip = CHIPS["v5e"]
    slice_ = Slice("v5e:2x2", chip, jax.devices())
    message = Collective("all-reduce", ((250_000,),), 10**6)
    step = StepPlan("train", 2**30, 2**30, 0, 197e9, 819e7, [message], 1.5e6)
    seconds = step.seconds(slice_)
    assert seconds == pytest.approx({"compute": 1e-3, "memory": 1e-2, "links": 7.5e-6})
    text = describe_step(step, slice_, 1000)
    assert "2.000 GiB of 16.000 GiB a device, fits" in text
    assert "1 all-reduce, 1.000 MB of results" in text
    assert "10.000 ms by memory: at most 100,000 samples/s" in text
    large = step._replace(temporaries=16 << 30)
    assert "DOES NOT FIT" in describe_step(large, slice_, 1000)


def test_the_largest_batch_by_hand():
    slice_ = Slice("v5e:2x2", CHIPS["v5e"], jax.devices())  # 16 GiB a chip
    whole = StepPlan("train", 2 << 30, 4 << 30, 0, 0.0, 0.0, [], 0.0)
    half = whole._replace(temporaries=2 << 30)
    # 2 GiB and 4 GiB for 64 samples: 14 GiB hold 224 of them.
    assert largest_batch(whole, half, slice_, 64, 4) == 224
    assert largest_batch(whole, half, slice_, 64, 100) == 200
    # What does not grow says nothing.
    assert largest_batch(whole, whole, slice_, 64, 4) == 64


def _abort(config, name):
    os.abort()


def _refuse(config, name):
    raise ConfigError(f"no {name} for {config}")


def test_a_compiler_that_ends_its_process_is_an_error_of_ours():
    with pytest.raises(ConfigError, match=r"--plan v5e:2x2: the TPU compiler ended without"):
        scripts.in_child(_abort, "config", "v5e:2x2")


def test_an_error_in_the_child_is_the_error_here():
    with pytest.raises(ConfigError, match=r"^no v5e:2x2 for config$"):
        scripts.in_child(_refuse, "config", "v5e:2x2")


@pytest.fixture
def printed(monkeypatch):
    """The steps that are printed, compiled for one CPU."""
    slice_ = Slice("v5e:1x1", CHIPS["v5e"], jax.devices()[:1])
    monkeypatch.setattr(topology, "describe", lambda name: slice_)
    steps = []
    monkeypatch.setattr(scripts, "_print_largest", lambda *_: None)
    monkeypatch.setattr(requirements, "describe_step", lambda step, *_: steps.append(step) or "")
    return steps


def test_what_is_in_a_loop_counts_every_turn(printed):
    config = TextConfig(
        dataset="dummy",
        layers=2,
        width=32,
        ffn_width=64,
        heads=2,
        max_tokens=32,
        vocab_size=300,
        batch_size=64,
    )
    looped = dataclasses.replace(config, scan=True, accumulate=4)
    for one in (config, looped):
        scripts.print_text_plan(one, "v5e:1x1")
    (whole, evaluated, _), (turns, evaluated_part, _) = printed[:3], printed[3:]
    assert whole.name == turns.name == "train"
    # Not an eighth. The optimizer's update is in every turn.
    assert whole.flops < turns.flops < 1.2 * whole.flops
    # A part of the batch, 16 blocks, against 32 of the 64: no more are evaluated at once.
    assert evaluated_part.flops == pytest.approx(evaluated.flops / 2, rel=0.02)


def test_accumulated_images_count_every_turn(printed):
    config = ImageConfig(
        dataset="dummy", arch="resnet18", image_size=64, batch_size=8, dummy_classes=10
    )
    for one in (config, dataclasses.replace(config, accumulate=2)):
        scripts.print_image_plan(one, "v5e:1x1")
    whole, turns = (step for step in printed if step.name == "train")
    assert whole.flops < turns.flops < 1.2 * whole.flops


@pytest.mark.tpu_aot
@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16"])
def test_resnet50_only_reduces(name):
    # Everything on the small slice; minutes on the large one.
    every = ("train", "evaluate", "recalibrate", "average")
    only = every if name == "v5e:4x4" else ("train", "average")
    found = compiled(RESNET.format(slice=name), only)
    for step in only:
        assert {operation for operation, _, _ in found[step]["messages"]} <= {"all-reduce"}
        assert found[step]["memory"] < CHIPS["v5e"].memory
    messages = found["train"]["messages"]
    # Data parallelism: gradients and BatchNorm moments are summed, nothing is gathered.
    assert {operation for operation, _, _ in messages} == {"all-reduce"}
    gradients = sum(nbytes for _, nbytes in found["params"])
    reduced = sum(nbytes for _, nbytes, _ in messages)
    # Each gradient once, in float32 or bfloat16, and little besides.
    assert 0.49 * gradients <= reduced <= 1.02 * gradients
    assert found["train"]["memory"] < CHIPS["v5e"].memory
    # Forward and backward of 64 images, 4.1 billion multiply-adds each forward.
    assert found["train"]["flops"] == pytest.approx(64 * 3 * 2 * 4.1e9, rel=0.1)
    assert found["average"]["messages"] == []


AVERAGE = """
import jax, sys
import jax.numpy as jnp
from lawa_jax.averaging import device
from lawa_jax.planning import topology
from lawa_jax.planning import requirements
from lawa_jax.planning.collectives import collectives
place = requirements.placement(topology.describe("v5e:4x4"), fsdp=4)
shapes = {"kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32),
          "bias": jax.ShapeDtypeStruct((512,), jnp.float32)}
step = device.lower_addition(place.abstract_state(shapes)).compile()
assert collectives(step.as_text()) == []
# A quarter of the tree and of its sum, a pair of float32.
quarter = 1024 * 512 * 4 // 4
assert 3 * quarter <= step.memory_analysis().argument_size_in_bytes <= 3.1 * quarter
"""


@pytest.mark.tpu_aot
@needs_libtpu
def test_sharded_averaging_compiles_without_messages():
    done = subprocess.run(
        [sys.executable, "-c", AVERAGE], text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.tpu_aot
@needs_libtpu
def test_roberta_base_sharded_over_four_fits_and_averages_without_messages():
    found = compiled(ROBERTA)
    operations = {operation for operation, _, _ in found["train"]["messages"]}
    assert "all-gather" in operations
    assert operations & {"all-reduce", "reduce-scatter"}
    assert found["train"]["memory"] < CHIPS["v5e"].memory
    # Each shard is averaged where it is.
    assert found["average"]["messages"] == []
    whole = sum(nbytes for _, nbytes in found["params"])
    # A quarter of a tree and of its sum in pairs of float32, with some room.
    assert found["average"]["memory"] < whole * 3 * 0.4
