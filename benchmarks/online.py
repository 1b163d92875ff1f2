"""What averaging inside the training loop costs: step times as ratios to the bare step.

    python benchmarks/online.py --model roberta
    python benchmarks/online.py --model resnet

Every row trains the same network on the same batch with optax's AdamW. Rounds of --steps steps
alternate, so that whatever else the machine does hits all rows alike; overheads are medians of
ratios to the bare step of the same round. PyTorch's `AveragedModel` is compared with PyTorch's own
bare step.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from torch_mlm import torch_mlm
from train_step import torch_network

from lawa_jax import (
    bias_corrected_average,
    exponential_average,
    latest_weight_averaging,
    power_average,
    script,
)
from lawa_jax.data.text import dummy_text
from lawa_jax.models.roberta import TINY
from lawa_jax.training.classification import classification_loss
from lawa_jax.training.image_task import resnet_network
from lawa_jax.training.mesh import Placement
from lawa_jax.training.mlm import masked_lm_loss
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import roberta_network, text_task
from lawa_jax.trajectory.formats.torch_files import import_torch


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    model: Literal["roberta", "resnet"] = "roberta"
    """Tiny RoBERTa (0.2M parameters), or ResNet-18 (11.7M)."""
    k: int = 5
    """Copies in the ring."""
    every: int = 100
    """Updates between copies."""
    rows: int = 8
    """Samples in a batch."""
    size: int = 64
    """Tokens in a block, or pixels a side."""
    steps: int = 100
    """Of a round; a multiple of `every` lets each round store alike."""
    rounds: int = 5
    """Measured, after one that is not."""
    torch: bool = True
    """Also measure PyTorch."""


def our_step(arguments: Arguments) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Parameters, ``loss(params)`` and the batch."""
    if arguments.model == "roberta":
        data = dummy_text(arguments.rows, max_tokens=arguments.size, vocab_size=2000)
        sizes: dict[str, Any] = dict(TINY, max_tokens=arguments.size, vocab_size=2000)
        network = roberta_network(**sizes)
        config = TextConfig(batch_size=arguments.rows, **sizes)
        task = text_task(config, data, Placement(jax.devices()[:1]))
        batch = next(task.train_batches(1, 0))
        loss_fn = masked_lm_loss(network)
    else:
        generator = np.random.default_rng(0)
        shape = (arguments.rows, arguments.size, arguments.size, 3)
        batch = {
            "image": generator.normal(size=shape).astype(np.float32),
            "label": generator.integers(0, 1000, arguments.rows, dtype=np.int32),
        }
        network = resnet_network("resnet18", num_classes=1000)
        loss_fn = classification_loss(network)
    model = network.init(0)
    rest = {name: tree for name, tree in model.items() if name != "params"}
    placed, key = jax.tree.map(jnp.asarray, batch), jax.random.key(0)

    def loss(params: Any) -> jax.Array:
        return loss_fn({"params": params, **rest}, placed, key, True)[0]

    return model["params"], loss, batch


def runner(
    params: Any, loss: Any, optimizer: optax.GradientTransformation, steps: int, ema: bool = False
) -> tuple[Callable[[], None], Any]:
    """A round of training, and the averaging transformation's state."""
    smooth = optax.ema(0.99, debias=False)

    def step(params: Any, state: Any, smoothed: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        if ema:
            smoothed = smooth.update(params, smoothed)[1]
        return params, state, smoothed

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    params = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    carry = [params, optimizer.init(params), smooth.init(params) if ema else ()]

    def run() -> None:
        for _ in range(steps):
            carry[:] = compiled(*carry)
        jax.block_until_ready(carry)

    return run, carry[1]


def torch_runners(
    arguments: Arguments, batch: dict[str, np.ndarray]
) -> dict[str, Callable[[], None]]:
    """PyTorch's bare round, and the same with `AveragedModel`."""
    torch = import_torch()
    if arguments.model == "roberta":
        sizes = dict(TINY, max_tokens=arguments.size)
        model, train = torch_mlm(sizes, vocab_size=2000)
    else:
        model = torch_network("resnet18").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(batch["label"].astype(np.int64))

        def train(_: Any) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay)

    def run(every: int) -> None:
        for number in range(arguments.steps):
            train(batch)
            if every and (number + 1) % every == 0:
                averaged.update_parameters(model)

    return {
        "PyTorch, bare": lambda: run(0),
        "PyTorch, AveragedModel, every step": lambda: run(1),
        f"PyTorch, AveragedModel, every {arguments.every}": lambda: run(arguments.every),
    }


def main() -> None:
    """Measure and print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    params, loss, batch = our_step(arguments)
    k, every = arguments.k, arguments.every
    ring, host = f"ring on device, k={k}, every {every}", f"ring on host, k={k}, every {every}"
    averages: dict[str, Any] = {
        ring: latest_weight_averaging(k, every),
        host: latest_weight_averaging(k, every, memory="host"),
        f"ring in bfloat16, k={k}, every {every}": latest_weight_averaging(
            k, every, dtype=jnp.bfloat16
        ),
        f"exponential_average, every {every}": exponential_average(0.9, every),
        "exponential_average, every step": exponential_average(0.99),
        f"power_average, every {every}": power_average(6.94, every),
        f"bias_corrected_average, every {every}": bias_corrected_average(every),
    }
    bare, _ = runner(params, loss, optax.adamw(1e-3), arguments.steps)
    rows = {"bare": bare}
    held = {}
    for name, averaging in averages.items():
        optimizer = optax.chain(optax.adamw(1e-3), averaging)
        rows[name], state = runner(params, loss, optimizer, arguments.steps)
        held[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(state[-1]))
    rows["optax.ema of the parameters, every step"], _ = runner(
        params, loss, optax.adamw(1e-3), arguments.steps, ema=True
    )
    if arguments.torch:
        rows |= torch_runners(arguments, batch)
    own = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(arguments.rounds + 1):
        names = list(rows)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            rows[name]()
            if number:
                seconds[name].append((time.perf_counter() - started) / arguments.steps)
    print(f"{arguments.model}, {own / 4e6:.1f}M parameters, {jax.devices()[0].device_kind}\n")
    print("| | ms a step | overhead % (least to most) | memory, in copies of the parameters |")
    print("| --- | ---: | ---: | ---: |")
    for name, times in seconds.items():
        base = seconds["PyTorch, bare" if name.startswith("PyTorch") else "bare"]
        over = [100 * (a / b - 1) for a, b in zip(times, base, strict=True)]
        copies = f"{held[name] / own:.2f}" if name in held else ""
        print(
            f"| {name} | {1e3 * statistics.median(times):.2f} | {statistics.median(over):.1f} "
            f"({min(over):.1f} to {max(over):.1f}) | {copies} |"
        )


if __name__ == "__main__":
    script.run(main)
