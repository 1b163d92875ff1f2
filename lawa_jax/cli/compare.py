"""`lawa diff A B` compares checkpoints, and `lawa verify OUT` checks an average."""

import dataclasses

from lawa_jax.cli.options import Leaves, Path, parse_bytes, print_json, progress
from lawa_jax.display import table
from lawa_jax.errors import TreeMismatchError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff(Leaves):
    """Compare two checkpoints leaf by leaf. The exit code is 2 if they belong to different
    models."""

    a: Path
    """RUN@step or a checkpoint directory."""
    b: Path
    """RUN@step or a checkpoint directory."""
    json: bool = False
    """Print one JSON document instead of text."""

    def __call__(self) -> int | None:
        """Print the leaves that differ."""
        from lawa_jax.offline.diff import diff

        one, other = (
            self.listed.open(x, item=self.item, include=self.include, exclude=self.exclude)
            for x in (self.a, self.b)
        )
        found = diff(one, other)
        same = len(one.leaves.keys() | other.leaves.keys()) - len(found)
        if self.json:
            print_json({"identical": same, "different": [d._asdict() for d in found]})
        else:
            if found:
                print(
                    table(
                        ["leaf", "max |a-b|", "||a-b||/||a||", "elements", "note"],
                        [
                            [
                                d.name,
                                "-" if d.max_abs is None else f"{d.max_abs:.3g}",
                                "-" if d.relative is None else f"{d.relative:.3g}",
                                f"{d.differing:,} of {d.size:,}" if d.size else "-",
                                d.problem or "",
                            ]
                            for d in found
                        ],
                    )
                )
            print(f"{same} leaves are identical, {len(found)} differ")
        problems = [d for d in found if d.problem]
        if problems:
            raise TreeMismatchError(
                f"{one.label} and {other.label} are not of one model: leaf {problems[0].name!r} "
                f"is {problems[0].problem} ({len(problems)} such leaves)"
            )
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Check an average against its record: read it and its sources again, recompute it, and
    compare."""

    out: Path
    """An average that lawa wrote."""
    strong: bool = False
    """Also compute a SHA-256 of every leaf."""
    memory: str = "1GiB"
    """The memory to stay within, such as 500MiB."""
    threads: int = 2
    """The number of threads that read and add."""
    json: bool = False
    """Print one JSON document instead of text."""

    def __call__(self) -> int | None:
        """Print what was found. The exit code is 3 if sources are missing or anything differs."""
        from lawa_jax.offline.verify import verify
        from lawa_jax.trajectory import Runs

        runs = Runs()
        total = runs.open(self.out, include=("*",)).nbytes
        with progress(total, "verifying") as advance:
            found = verify(
                self.out,
                runs=runs,
                strong=self.strong,
                memory=parse_bytes(self.memory),
                threads=self.threads,
                progress=advance,
            )
        if self.json:
            print_json(found._asdict())
        else:
            for name, value in found.sha256.items():
                print(f"{value}  {name}")
            if found.missing:
                print(
                    f"{self.out}: its bytes are as they were written, but it cannot be "
                    f"recomputed: {len(found.missing)} sources are gone, first {found.missing[0]}"
                )
            else:
                print(
                    f"{self.out}: {found.leaves} leaves are, bit for bit, the average of "
                    f"{len(found.sources)} unchanged checkpoints"
                )
        return 3 if found.missing else None
