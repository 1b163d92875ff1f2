"""`lawa reconstruct` makes a power-function EMA of any width from stored snapshots of others."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from lawa_jax.cli.average import OneAverage
from lawa_jax.errors import ConfigError

if TYPE_CHECKING:
    from lawa_jax.offline.recipe import Recipe

# Beyond this share of its length the EMA is not what was asked for.
_POOR = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruct(OneAverage):
    """Make an EMA that was not kept during training from snapshots of EMAs that were.

    Example: lawa reconstruct EMA_A:0.05 EMA_B:0.10 --sigma-rel 0.15 -o OUT
    """

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN:SIGMA_REL")
    ] = ()
    """Directories of snapshots of power-function EMAs, each followed by its relative width."""
    sigma_rel: float
    """The relative width of the EMA to make."""
    end: int | None = None
    """The step at which the EMA ends. By default it is that of the newest snapshot."""

    def recipe(self) -> "Recipe":
        """The snapshots with their weights, found by least squares."""
        from lawa_jax.offline.recipe import reconstruction_recipe, split_weight

        runs: dict[str, float] = {}
        for text in self.runs:
            run, sigma = split_weight(text)
            if sigma is None:
                raise ConfigError(f"{text}: expected RUN:SIGMA_REL, such as {text}:0.05")
            if run in runs:
                raise ConfigError(f"{run} is named twice; give every width a directory of its own")
            runs[run] = sigma
        if not runs:
            raise ConfigError("name directories of snapshots: lawa reconstruct EMA_A:0.05 ...")
        recipe, error = reconstruction_recipe(
            runs, sigma_rel=self.sigma_rel, end=self.end, listed=self.listed
        )
        poor = ": keep more snapshots, or widths around this one" if error > _POOR else ""
        print(f"reconstruction error {error:.2g} of the EMA's profile{poor}", file=sys.stderr)
        return recipe
