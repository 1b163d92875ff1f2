"""What the subcommands share: options for reading, readable sizes, tables and progress."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm import tqdm

from lawa_jax.averaging.statistics import StoredStatistics
from lawa_jax.errors import ConfigError

if TYPE_CHECKING:
    from lawa_jax.trajectory import Runs

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaves:
    """The options that choose the leaves of a checkpoint."""

    item: str | None = None
    """The item of a step to read (params, state, ...). By default it is chosen by its name."""
    include: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A pattern of leaves to take, such as params/*; repeatable. By default the parameters and
    batch statistics are taken. Optimizer state is taken only if a pattern asks for it."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A pattern of leaves to leave out; repeatable."""

    @functools.cached_property
    def listed(self) -> "Runs":
        """The runs that this command reads, each listed once."""
        from lawa_jax.trajectory import Runs

        return Runs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging(Leaves):
    """The options that say how to read and average."""

    dtype: str | None = None
    """The dtype of averaged leaves. Use float32 where rounding back to bfloat16 would discard the
    gain. By default every leaf keeps its own dtype."""
    memory: str = "1GiB"
    """The memory to stay within, such as 500MiB."""
    threads: int = 2
    """The number of threads that read and add."""
    overwrite: bool = False
    """Replace an earlier output of lawa, once the new one is complete. Nothing else is ever
    replaced."""
    dry_run: bool = False
    """Only print what would be done: the checkpoints, their weights, bytes and memory."""
    json: bool = False
    """Print one JSON document instead of text."""

    def options(self, bn: StoredStatistics) -> Any:
        """These options in the form the library takes, with a policy for BatchNorm statistics."""
        from lawa_jax.offline.recipe import AveragingOptions

        return AveragingOptions(
            self.item,
            self.include,
            self.exclude,
            self.dtype,
            bn,
            parse_bytes(self.memory),
            self.threads,
        )


Path = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN[@STEP]")]


def parse_bytes(text: str) -> int:
    """``"1GiB"``, ``"500M"``, ``"1e9"`` as a number of bytes.

    Raises:
      ConfigError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9.eE+]+)\s*([kKmMgGtT]?i?)[bB]?\s*", text)
    try:
        size = float(match.group(1)) * _UNITS[match.group(2).lower()] if match else 0.0
    except (KeyError, ValueError):
        size = 0.0
    if not 1 <= size < 2**62:
        raise ConfigError(f"expected an amount of memory such as 1GiB, found {text!r}")
    return int(size)


def numbers(text: str, what: str) -> list[int]:
    """Parse comma-separated numbers and start:stop[:stride] ranges; both ends are included."""
    from lawa_jax.averaging.window import parse_steps

    if not text.strip():
        raise ConfigError(f"{what}: expected numbers such as 2,3,5 or 30:90:10, found nothing")
    return list(parse_steps(text))


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2))


@contextmanager
def progress(total: int, what: str, *, delay: float = 0.5) -> Iterator[Any]:
    """A bar on stderr in bytes with rate and ETA; yields ``advance(bytes)``.

    Where stderr is no terminal, a line every ten seconds; nothing before `delay` seconds.
    """
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, leave=False,
        mininterval=0.1 if terminal else 10.0, delay=delay,
    ) as bar:  # fmt: skip
        yield bar.update
