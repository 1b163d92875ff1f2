"""`lawa sweep`: every window length, end and method in one pass."""

import dataclasses
import sys
import time
from typing import Annotated

import tyro

from lawa_jax.checkpoints.discovery import as_path, is_object_store
from lawa_jax.commands.average import sources_of, warn_of_statistics
from lawa_jax.commands.common import (
    Averaging,
    Path,
    human,
    numbers,
    print_json,
    progress,
    rows,
)
from lawa_jax.errors import ConfigError

JOURNAL = ".lawa-sweep"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Averaging):
    """Average many windows in one pass over a run: lawa sweep RUN -k 2,3,5,10 --end 30:90:10
    --method uniform,ema -o OUTDIR. Interrupted, the same command goes on where it stopped."""

    run: Path
    """Run directory."""
    k: Annotated[str, tyro.conf.arg(aliases=["-k"])] = "5"
    """Numbers of checkpoints: 2,3,5,10."""
    end: str
    """Ends of the windows: 30:90:10 (both ends included) or 30,60,90."""
    method: str = "uniform"
    """Methods, comma-separated (see lawa average)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Directory for the averages, one subdirectory each."""

    def __call__(self) -> None:
        """Make the averages."""
        from lawa_jax.jobs import sweep_jobs
        from lawa_jax.trajectory import estimate, run_jobs

        jobs = sweep_jobs(
            self.run,
            ks=numbers(self.k, "-k"),
            ends=numbers(self.end, "--end"),
            methods=[m.strip() for m in self.method.split(",") if m.strip()],
        )
        expected = estimate(jobs, self.options())
        plan = {
            "averages": {
                job.name: {"method": job.method, "sources": sources_of(job)} for job in jobs
            },
            "checkpoints": expected.checkpoints,
            "bytes_to_read": expected.bytes_to_read,
            "bytes_to_write": expected.bytes_to_write,
            "memory_bound": expected.memory_bound,
            "statistics": expected.statistics,
            "bn": self.bn if expected.statistics else None,
        }
        if self.dry_run and self.json:
            print_json(plan)
            return
        if self.dry_run:
            print(
                rows(
                    ["average", "checkpoints", "method"],
                    [[j.name, " ".join(s.rpartition("@")[2] for s in j.sources), j.method]
                     for j in jobs],
                )
            )  # fmt: skip
        if not self.json:
            print(
                f"{len(jobs)} averages from {len(expected.checkpoints)} checkpoints, each read "
                f"once; reads {human(expected.bytes_to_read)}, writes "
                f"{human(expected.bytes_to_write)}, memory at most {human(expected.memory_bound)}",
                file=sys.stdout if self.dry_run else sys.stderr,
            )
            warn_of_statistics(expected, self.bn)
        if self.dry_run:
            return
        if self.out is None:
            raise ConfigError("say where to write the averages: -o OUTDIR (or --dry-run)")
        folder = as_path(self.out)
        # Object stores cannot be staged beside and taken up again.
        journal = None if is_object_store(folder) else folder / JOURNAL
        started = time.perf_counter()
        with progress(expected.bytes_to_read, "reading") as advance:
            results = run_jobs(
                jobs,
                [folder / job.name for job in jobs],
                options=self.options(),
                overwrite=self.overwrite,
                journal=journal,
                progress=advance,
            )
        seconds = time.perf_counter() - started
        if self.json:
            print_json({**plan, "outputs": [str(r.path) for r in results], "seconds": seconds})
        else:
            print(f"wrote {len(results)} averages into {folder} in {seconds:.2f} s")
