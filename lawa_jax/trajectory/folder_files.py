"""What in a folder may be a checkpoint of the trajectory, before any file is opened."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory.formats.huggingface import SUFFIXES, is_checkpoint_directory
from lawa_jax.trajectory.formats.trainer_folders import models_below
from lawa_jax.trajectory.name_steps import NameReading, step_in_name

_NO_EPOCH = {
    "trainer": "an optimizer's or a trainer's file",
    "shard": "a shard without its own folder",
    "unfinished": "by its name an unfinished save",
    "average": "an average of checkpoints",
    "ema": "a running average of the weights (EMA)",
}


class Candidate(NamedTuple):
    """A file or folder, and what its name says."""

    path: Path
    reading: NameReading


def candidates_in(source: Path, match: str | None) -> tuple[list[Candidate], list[str]]:
    """Files and folders that may be checkpoints, and what was ignored with the reason.

    Args:
      source: a folder of checkpoints, or one of them.
      match: a glob of names, or of paths below the folder (``iter_*/mp_rank_00``).

    Raises:
      SelectionError: the folder holds several series of files (``G_*.pth``, ``D_*.pth``).
      CheckpointNotFoundError: nothing matches.
    """
    alone = source.is_file() or (is_checkpoint_directory(source) and not _holds_several(source))
    if alone and match is None:
        return [Candidate(source, step_in_name(source.name))], []
    if match is not None:
        paths = _matching(source, match)
        return _of_one_series([Candidate(p, _reading_of(p, source)) for p in paths]), []
    kept: list[Candidate] = []
    ignored: list[str] = []
    for path in sorted(p for p in source.iterdir() if not p.name.startswith(".")):
        reading = step_in_name(path.name)
        if path.is_dir():
            is_checkpoint = is_checkpoint_directory(path)
            below = [] if is_checkpoint else models_below(path)
            if below and reading.numbered:
                raise SelectionError(
                    f"{path}: it holds {len(below)} models ({', '.join(below)}); choose one with "
                    f"--match '*/{below[0]}', for instance"
                )
            reason = None if is_checkpoint else "no checkpoint"
        elif path.suffix not in SUFFIXES:
            reason = "no checkpoint"
        else:
            reason = _NO_EPOCH.get(reading.kind)
        if reading.kind == "unfinished":
            reason = _NO_EPOCH["unfinished"]
        if reason is None or reading.kind in ("average", "ema"):
            kept.append(Candidate(path, reading))
        else:
            ignored.append(f"{path.name}{'/' if path.is_dir() else ''}: {reason}")
    return _without_averages(source, kept, ignored), ignored


def _matching(source: Path, match: str) -> list[Path]:
    try:
        paths = sorted(p for p in source.glob(match) if not p.name.startswith("."))
    except (ValueError, NotImplementedError) as error:
        raise SelectionError(
            f"--match {match!r}: {error}; expected a glob such as 'G_*'"
        ) from error
    paths = [p for p in paths if p.is_dir() or p.suffix in SUFFIXES]
    if not paths:
        raise CheckpointNotFoundError(
            f"{source}: nothing in it matches --match {match!r} and may hold a model"
        )
    return paths


def _reading_of(path: Path, source: Path) -> NameReading:
    """Of ``iter_1000/mp_rank_00/model_optim_rng.pt`` the first part with a number tells."""
    readings = [step_in_name(part) for part in path.relative_to(source).parts]
    return next((r for r in readings if r.numbered), readings[-1])


def _holds_several(source: Path) -> bool:
    return any(
        step_in_name(p.name).numbered and (p.is_dir() or p.suffix in SUFFIXES)
        for p in source.iterdir()
    )


def _without_averages(source: Path, found: list[Candidate], ignored: list[str]) -> list[Candidate]:
    averages = [c for c in found if c.reading.kind in ("average", "ema")]
    rest = [c for c in found if c.reading.kind not in ("average", "ema")]
    if averages and not rest:
        raise SelectionError(
            f"{source}: it holds nothing but averages of checkpoints, such as "
            f"{averages[0].path.name}; say --match {averages[0].reading.pattern!r} to take them "
            "as they are"
        )
    running = [c for c in averages if c.reading.kind == "ema" and c.reading.numbered]
    if len(running) > 1:
        # Saved at every checkpoint: a trajectory of its own, which somebody may want.
        return _of_one_series([*rest, *running])
    ignored += [f"{c.path.name}: {_NO_EPOCH[c.reading.kind]}, no epoch" for c in averages]
    return _of_one_series(rest)


def _of_one_series(found: list[Candidate]) -> list[Candidate]:
    """Refuses files of several roles, such as a generator's and a discriminator's."""
    numbered = [c for c in found if c.reading.numbered and not c.reading.mid_epoch]
    series: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in numbered:
        words = " ".join(w for w in candidate.reading.role.split() if not w[:1].isdigit())
        series[words].append(candidate)
    if len(series) > 1:
        raise several_series([members[0] for members in series.values()])
    return found


def several_series(examples: Sequence[Candidate]) -> SelectionError:
    """The error that asks for ``--match``."""
    patterns = list(dict.fromkeys(c.reading.pattern for c in examples))
    names = ", ".join(c.path.name for c in examples[:4])
    return SelectionError(
        f"{examples[0].path.parent}: it holds files of several models or runs ({names}); choose "
        f"one with --match, for instance --match {patterns[0]!r}"
    )
