"""A ResNet's training step beside PyTorch's: seconds a step, of compiling, and peak memory.

    python benchmarks/train_step.py                          (resnet18 at 64 pixels: for a CPU)
    python benchmarks/train_step.py --arch resnet50 --size 224 --batch_size 256 --dtype bfloat16

Both sides train the same network on the same batch with SGD, on the same device: PyTorch on CUDA
where it and JAX have it, else both on the CPU. Rounds alternate, so that whatever else the machine
does hits both alike; the ratio is the median over rounds, above 1 where ours is faster. Memory is
the device's own count; on a CPU what XLA planned for the step (arguments, outputs, temporaries).
"""

import dataclasses
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from lawa_jax.models.resnet import ARCHITECTURES
from lawa_jax.training.classification import classification_loss
from lawa_jax.training.image_task import resnet_network
from lawa_jax.training.optim import sgd
from lawa_jax.training.steps import init_state, make_train_step


@dataclasses.dataclass
class Arguments:
    """What to measure."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet18"
    size: int = 64
    """Pixels a side."""
    batch_size: int = 32
    classes: int = 1000
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; PyTorch computes under autocast."""
    rounds: int = 7
    steps: int = 2
    """Steps a round."""


def torch_network(arch: str, classes: int = 1000) -> Any:
    """The network of the parity tests."""
    file = Path(__file__).resolve().parents[1] / "tests" / "parity" / "torch_resnet.py"
    spec = importlib.util.spec_from_file_location("torch_resnet", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    architecture = ARCHITECTURES[arch]
    return module.TorchResNet(
        architecture.stage_sizes,
        (64, 128, 256, 512),
        architecture.block == "bottleneck",
        classes=classes,
    )


class Ours:
    """The training step of this project."""

    def __init__(self, arguments: Arguments, pixels: np.ndarray, labels: np.ndarray) -> None:
        network = resnet_network(
            arguments.arch, num_classes=arguments.classes, compute_dtype=arguments.dtype
        )
        optimizer = sgd(momentum=0.9, weight_decay=1e-4)
        self.state = init_state(network.init(0), optimizer)
        self.batch = {"image": jnp.asarray(pixels), "label": jnp.asarray(labels)}
        self.key = jax.random.key(0)
        step: Any = make_train_step(classification_loss(network), optimizer)
        lowered = step.lower(self.state, self.batch, 0.1, self.key)
        start = time.perf_counter()
        self.step = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch, 0.1, self.key)
        jax.block_until_ready(metrics)

    def megabytes(self) -> float:
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 1e6
        plan: Any = self.step.memory_analysis()
        sizes = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return (sizes + plan.temp_size_in_bytes) / 1e6


class Theirs:
    """The usual training step in PyTorch, eager, channels last."""

    def __init__(self, arguments: Arguments, pixels: np.ndarray, labels: np.ndarray) -> None:
        cuda = torch.cuda.is_available() and jax.default_backend() == "gpu"
        self.device = torch.device("cuda" if cuda else "cpu")
        torch.backends.cudnn.benchmark = True
        self.network = torch_network(arguments.arch, arguments.classes).to(
            self.device, memory_format=torch.channels_last
        )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        images = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self.half = arguments.dtype == "bfloat16"

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                logits = self.network(self.images)
                loss = torch.nn.functional.cross_entropy(logits, self.labels)
            loss.backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def megabytes(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e6 if self.device.type == "cuda" else None


def seconds(side: Ours | Theirs, steps: int) -> float:
    """Of one step, over a round."""
    start = time.perf_counter()
    side.run(steps)
    return (time.perf_counter() - start) / steps


def main(arguments: Arguments) -> None:
    """Measure and print."""
    generator = np.random.default_rng(0)
    shape = (arguments.batch_size, arguments.size, arguments.size, 3)
    pixels = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = generator.integers(0, arguments.classes, arguments.batch_size, dtype=np.int32)
    ours, theirs = Ours(arguments, pixels, labels), Theirs(arguments, pixels, labels)
    print(f"{arguments}\nours on {jax.devices()[0].device_kind}, PyTorch on {theirs.device}")
    print(f"compiled in {ours.compile_seconds:.1f} s, {ours.megabytes():.0f} MB", flush=True)
    for side in (ours, theirs):
        side.run(2)
    rounds = [
        (seconds(ours, arguments.steps), seconds(theirs, arguments.steps))
        for _ in range(arguments.rounds)
    ]
    for name, times in zip(("ours", "PyTorch"), zip(*rounds, strict=True), strict=True):
        middle = statistics.median(times)
        print(
            f"{name:8} {1e3 * middle:8.1f} ms a step, {arguments.batch_size / middle:.0f} images/s"
        )
    ratios = [other / own for own, other in rounds]
    print(
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) over "
        f"{arguments.rounds} rounds"
    )
    if (used := theirs.megabytes()) is not None:
        print(f"peak memory {ours.megabytes():.0f} MB, PyTorch {used:.0f} MB")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
