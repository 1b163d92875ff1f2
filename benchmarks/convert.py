"""Converting checkpoints against the least anybody could do: load, and write the same bytes.

    python benchmarks/convert.py --kind roberta CHECKPOINTS    (files as they were published)

Compares for all files of a folder, alternating and with a warm cache:

* the floor: ``torch.load(mmap=True)`` and every model tensor written to one raw file and synced;
* the conversion as ``convert/`` runs it by default, several files at once: names, layouts, digests,
  durable and atomic Orbax checkpoints;
* the same, one file at a time.

Prints medians, ratios of speeds (goal: at least 0.60), and the peak memory of one conversion
above what the imports take, without mapped file pages (goal: at most 1.2 times the model's tensors
plus 100 MB).
"""

import gc
import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lawa_jax import script
from lawa_jax.errors import CheckpointNotFoundError
from lawa_jax.interop import (
    conversion,
    epoch_writer,
    fairseq_roberta,
    state_dicts,
    torchvision_resnet,
)
from lawa_jax.trajectory.formats import inert, torch_files
from lawa_jax.trajectory.formats.huggingface import open_state

CONVERTERS = {
    "resnet50": lambda state: torchvision_resnet.convert(state, "resnet50"),
    "roberta": fairseq_roberta.convert,
    "state_dicts": state_dicts.convert,
}


@dataclass(frozen=True)
class ConvertArguments:
    """What to measure."""

    source: Annotated[Path, tyro.conf.Positional]
    """A folder of .pt files."""
    kind: Literal["resnet50", "roberta", "state_dicts"] = "state_dicts"
    """The converter."""
    repeats: int = 3
    """Times every file is converted."""
    scratch: Path | None = None
    """Where to write; a temporary folder by default."""


def anonymous_bytes() -> int:
    """Resident memory of this process without mapped file pages."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


class Peak:
    """The highest memory inside a ``with`` block, sampled every 2 ms."""

    def __enter__(self) -> "Peak":
        self.start = self.highest = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.highest = max(self.highest, anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


class Stopwatch:
    """Appends the seconds of a ``with`` block to a list."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._times.append(time.perf_counter() - self._start)


def convert_one(path: Path, target: Path, kind: str) -> int:
    """Convert one file as `convert/` does with --workers 1; bytes of its model."""
    state = open_state(path)
    names = CONVERTERS[kind](state).names
    threads = os.cpu_count() or 1
    epoch_writer.write_epoch(target, state, names, 1, progress=lambda count: None, threads=threads)
    return names.nbytes


def floor(path: Path, target: Path) -> None:
    """Load, and write every tensor's bytes one after the other."""
    torch = torch_files.import_torch()
    strangers = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    allowed = [(inert.stand_in(name), name) for name in strangers]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    model = content.get("model", content.get("state_dict", content))
    seen = set()
    with open(target, "wb") as file:
        for tensor in model.values():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Measure and print."""
    arguments = tyro.cli(ConvertArguments, description=__doc__)
    files = sorted(arguments.source.glob("*.pt"))
    if not files:
        raise CheckpointNotFoundError(f"{arguments.source}: no .pt files in it")
    torch_files.import_torch()
    gc.freeze()  # as the converters do; for both sides
    whole: list[float] = []
    alone: list[float] = []
    theirs: list[float] = []
    peaks: list[int] = []
    size = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        work = Path(folder)
        for number in range(arguments.repeats):
            # Nothing is removed in between and everything is synced: no side pays for the
            # deferred work of another.
            os.sync()
            with Stopwatch(theirs):
                for file in files:
                    floor(file, work / f"raw{number}-{file.stem}")
            os.sync()
            with Stopwatch(whole):
                conversion.convert_trajectory(
                    arguments.source,
                    work / f"run{number}",
                    CONVERTERS[arguments.kind],
                    conversion.ConvertOptions(),
                )
            os.sync()
            with Stopwatch(alone):
                for file in files:
                    with Peak() as peak:
                        size = convert_one(file, work / f"{number}{file.stem}", arguments.kind)
                    peaks.append(peak.highest - peak.start)
    total, most, bound = size * len(files), max(peaks), 1.2 * size + 100e6
    least = statistics.median(theirs)
    print(
        f"{len(files)} files of {files[0].stat().st_size / 1e6:.1f} MB, {size / 1e6:.1f} MB model"
    )
    for label, seconds in (
        ("load + raw write", least),
        ("convert, default workers", statistics.median(whole)),
        ("convert, one file at a time", statistics.median(alone)),
    ):
        print(
            f"{label:28} {seconds:7.2f} s {total / seconds / 1e6:7.0f} MB/s "
            f"  speed ratio {least / seconds:5.2f}"
        )
    ratio = least / statistics.median(whole)
    print(f"speed goal, ratio >= 0.60: {'met' if ratio >= 0.6 else 'MISSED'}")
    met = "met" if most <= bound else "MISSED"
    print(f"peak memory of one file {most / 1e6:.1f} MB, goal <= {bound / 1e6:.1f} MB: {met}")


if __name__ == "__main__":
    script.run(main)
