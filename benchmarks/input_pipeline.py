"""Images a second of the training pipeline, beside a torchvision-style PyTorch DataLoader.

    python benchmarks/input_pipeline.py --folder DIR    (a folder of class folders of images)
    python benchmarks/input_pipeline.py                 (generated JPEGs, photograph-like)

Both do the same work on the same files: decode with Pillow, RandomResizedCrop, flip, batch, with
the same number of workers: threads here (processes with --processes), processes there. PyTorch's
side is written as torchvision writes it (PIL backend): RGB conversion, ToTensor and Normalize in
the workers. Ours is measured as uint8, to be normalised on the device, and as float32. Rounds
alternate in one run, so that whatever else the machine does hits all alike; the ratios are medians
over rounds. PyTorch's workers are started before and kept, so that no start counts. CPU time is of
all threads and processes together: what a machine whose cores are busy has to give.
"""

import dataclasses
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from PIL import Image

from lawa_jax.data.image_folder import ImageFolder
from lawa_jax.data.image_source import TrainingImages
from lawa_jax.data.images import MEAN, STD
from lawa_jax.data.loader import train_batches


@dataclasses.dataclass
class Arguments:
    """What to measure."""

    folder: Path | None = None
    """Folder of class folders; generated images if left out."""
    images: int = 2048
    """Images a round; the files are repeated to reach it."""
    batch_size: int = 64
    workers: int = 2
    """Threads here, processes in PyTorch."""
    size: int = 224
    """Pixels a side."""
    rounds: int = 5
    processes: bool = False
    """Use processes here too."""


class Repeated:
    """A folder's images over and over, `length` of them."""

    def __init__(self, folder: ImageFolder, length: int) -> None:
        self.folder, self.length, self.classes = folder, length, folder.classes

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> tuple[bytes, int]:
        return self.folder.read(index % len(self.folder))

    def name(self, index: int) -> str:
        return self.folder.name(index % len(self.folder))


class TorchStyle(torch.utils.data.Dataset):
    """As torchvision's ImageFolder with the usual training transformations."""

    def __init__(self, images: Repeated, size: int) -> None:
        self.images, self.size = images, size
        self.mean, self.std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.images.name(index), "rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, width, height = self._box(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # ToTensor, then Normalize.
        tensor = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
        tensor = tensor.to(torch.float32).div(255)
        label = int(self.images.folder.labels[index % len(self.images.folder)])
        return tensor.clone().sub_(self.mean).div_(self.std), label

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        log_ratio = torch.log(torch.tensor((3 / 4, 4 / 3)))
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
            aspect = torch.exp(torch.empty(1).uniform_(*log_ratio.tolist())).item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = torch.randint(0, height - h + 1, (1,)).item()
                left = torch.randint(0, width - w + 1, (1,)).item()
                return int(left), int(top), w, h
        side = min(width, height)
        return (width - side) // 2, (height - side) // 2, side, side


def generate(folder: Path, count: int = 200) -> None:
    """JPEGs of 500x375 with the 1/f spectrum of photographs, about 100 kB each."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / 500)
    for index in range(count):
        waves = rng.standard_normal((3, *falloff.shape)) * np.exp(
            2j * np.pi * rng.random((3, 1, 1))
        )
        phases = np.exp(2j * np.pi * rng.random((3, *falloff.shape)))
        planes = np.fft.irfft2(waves * phases * falloff, s=(375, 500))
        # Channels of photographs are alike.
        planes = planes.mean(0) + 0.3 * planes
        pixels = np.clip(128 + 50 * planes / planes.std(), 0, 255).astype(np.uint8)
        target = folder / str(index % 10)
        target.mkdir(exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(target / f"{index}.jpg", quality=90)


def rate(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Images a second and milliseconds of CPU time an image, over one pass."""
    start, busy = time.perf_counter(), cpu_seconds()
    for _ in batches:
        pass
    elapsed = time.perf_counter() - start
    return count / elapsed, (cpu_seconds() - busy) / count * 1e3


def cpu_seconds() -> float:
    """Of this process and its children by now."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def main(arguments: Arguments) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.folder is None:
            generate(Path(scratch))
        measure(arguments, arguments.folder or Path(scratch))


def measure(arguments: Arguments, folder: Path) -> None:
    """All pipelines in alternating rounds on the images in `folder`."""
    count = arguments.images // arguments.batch_size * arguments.batch_size
    images = Repeated(ImageFolder(folder, allow_empty=True), count)
    sizes = [Image.open(io.BytesIO(images.read(i)[0])).size for i in range(min(200, count))]
    median = "x".join(str(int(value)) for value in np.median(sizes, axis=0))
    print(f"{len(images.folder)} files in {folder}, median {median}; {arguments}")
    loader = torch.utils.data.DataLoader(
        TorchStyle(images, arguments.size),
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
    )

    def ours(dtype: Any, epoch: int) -> Iterable[Any]:
        source = TrainingImages(images, size=arguments.size, dtype=dtype)
        return train_batches(
            source,
            batch_size=arguments.batch_size,
            seed=0,
            epoch=epoch,
            transform=source.augment,
            threads=1 if arguments.processes else arguments.workers,
            workers=arguments.workers if arguments.processes else 0,
        )

    pipelines: dict[str, Callable[[int], Iterable[Any]]] = {
        "PyTorch DataLoader, float32": lambda epoch: loader,
        "lawa_jax, float32": lambda epoch: ours("float32", epoch),
        "lawa_jax, uint8": lambda epoch: ours("uint8", epoch),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for turn in range(arguments.rounds + 1):
        for name, start in pipelines.items():
            result = rate(start(turn + 1), count)
            if turn:  # the first round starts workers and fills caches
                measured[name].append(result)
    reference = measured["PyTorch DataLoader, float32"]
    for name, values in measured.items():
        ratios, savings = (
            [
                (value[i] / other[i]) ** (1 - 2 * i)
                for value, other in zip(values, reference, strict=True)
            ]
            for i in (0, 1)
        )
        print(
            f"{name:28} {statistics.median(v[0] for v in values):6.0f} images/s, ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"{statistics.median(v[1] for v in values):.2f} ms CPU an image, ratio "
            f"{statistics.median(savings):.2f} ({min(savings):.2f} to {max(savings):.2f})"
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
