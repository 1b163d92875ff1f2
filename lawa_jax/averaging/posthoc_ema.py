"""Any power-function EMA after training, from snapshots of a few others (Karras et al. 2023).

A power-function EMA of exponent g read at time T weighs the parameters of time t by
``p(t) = (g+1) t^g / T^(g+1)`` on [0, T]. Averages of snapshots have the same averages of profiles,
so that weights x with ``sum_i x_i p_i ~ p`` give the EMA of profile p that nobody stored: least
squares over [0, T], with inner products known in closed form (arXiv 2312.02696, appendix C,
algorithm 3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lawa_jax.averaging.coefficients import Coefficients, gamma_of_sigma
from lawa_jax.errors import SelectionError


class Profile(NamedTuple):
    """A power-function EMA.

    Attributes:
      sigma_rel: its relative width, in (0, 0.2886].
      step: time it is read at since the start of training, in any unit common to all.
    """

    sigma_rel: float
    step: float


def posthoc_ema_weights(
    snapshots: Sequence[tuple[float, float]], target: tuple[float, float]
) -> Coefficients:
    """Weights of stored EMA snapshots whose average is closest to the EMA `target`.

    Minimises ``integral (sum_i x_i p_i - p)^2 dt`` subject to ``sum_i x_i = 1``, so that what did
    not change in training comes out as it was; the paper leaves the sum free, where it is almost 1.
    Weights may be negative. Two widths, snapshots at regular times and a target between the widths
    or near them are enough; `reconstruction_error` tells.

    >>> posthoc_ema_weights([(0.05, 10), (0.10, 10)], (0.10, 10)).round(9) + 0.0
    array([0., 1.])

    Args:
      snapshots: what is stored, each a `Profile` or ``(sigma_rel, step)``.
      target: what is wanted.

    Raises:
      SelectionError: no snapshots, one twice, or a profile out of range.
    """
    if not snapshots:
        raise SelectionError("there are no snapshots to reconstruct an EMA from")
    if len(set(snapshots)) < len(snapshots):
        sigma, step = next(s for s in snapshots if list(snapshots).count(s) > 1)
        raise SelectionError(f"the snapshot of sigma_rel {sigma} at {step} is there twice")
    n = len(snapshots)
    gram, overlap = _products(snapshots, snapshots), _products(snapshots, [target])[:, 0]
    # Profiles of unit length, so that early snapshots (high and narrow) are not favoured.
    scale = 1 / np.sqrt(np.diag(gram))
    # The Lagrange condition of the constraint is one more row and column.
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram * scale[:, None] * scale
    system[n, :n] = system[:n, n] = scale / scale.max()
    right = np.append(overlap * scale, 1 / scale.max())
    x = np.linalg.lstsq(system, right, rcond=None)[0][:n] * scale
    return x / x.sum()


def reconstruction_error(
    snapshots: Sequence[tuple[float, float]], target: tuple[float, float], weights: Coefficients
) -> float:
    """``||sum_i x_i p_i - p|| / ||p||``, the L2 norm over time: 0 is exact, 0.1 a tenth off."""
    everything = [*snapshots, target]
    x = np.append(weights, -1.0)
    gram = _products(everything, everything)
    return float(np.sqrt(max(x @ gram @ x, 0.0) / gram[-1, -1]))


def _products(
    a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]
) -> Float[np.ndarray, "a b"]:
    """Inner products of profiles.

    The integral of ``p_a p_b`` ends at the earlier time s; with ``s^(g_a+g_b+1)`` inserted,
    ``(g_a+1)(g_b+1)/(g_a+g_b+1) (s/T)^g / T`` for the later time T and the exponent g of its EMA.
    """
    (ga, ta), (gb, tb) = _exponents(a), _exponents(b)
    ga, ta = ga[:, None], ta[:, None]
    later, exponent = np.maximum(ta, tb), np.where(ta < tb, gb, ga)
    ratio = np.minimum(ta, tb) / later
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * np.power(ratio, exponent) / later


def _exponents(profiles: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([step for _, step in profiles], np.float64)
    if not (np.all(steps > 0) and np.all(np.isfinite(steps))):
        raise SelectionError(f"snapshots: expected steps > 0, found {steps.tolist()}")
    return np.array([gamma_of_sigma(sigma) for sigma, _ in profiles]), steps
