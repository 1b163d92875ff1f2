"""What weights: every averaging method as coefficients of one weighted combination.

``theta = sum_j c_j theta_j``, j = 1 the oldest .. N the newest, ``sum_j c_j = 1``. All functions
return float64 arrays of shape [N], oldest first.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lawa_jax.errors import SelectionError

Coefficients = Float[np.ndarray, " n"]


def uniform(n: int) -> Coefficients:
    """Equal weights, ``c_j = 1/N``: LAWA (arXiv 2209.14981), SWA, simple moving average.

    >>> uniform(4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check_count(n)
    return np.full(n, 1.0 / n)


def linear(n: int) -> Coefficients:
    """Weights growing with time, ``c_j = 2j / (N(N+1))`` (WMA, arXiv 2505.12082).

    >>> linear(3) * 6
    array([1., 2., 3.])
    """
    _check_count(n)
    return 2.0 * np.arange(1, n + 1) / (n * (n + 1))


def ema(n: int, decay: float = 0.9) -> Coefficients:
    """Exponential moving average started at the oldest checkpoint.

    ``a_1 = theta_1``, ``a_j = decay a_{j-1} + (1-decay) theta_j``, hence ``c_1 = decay^(N-1)`` and
    ``c_j = (1-decay) decay^(N-j)``. `decay` weighs the OLD average, as in the published code of
    LAWA; the paper's text weighs the newest by 0.9, which is ``decay=0.1`` here.

    >>> ema(3, 0.5)
    array([0.25, 0.25, 0.5 ])

    Raises:
      SelectionError: `decay` outside [0, 1).
    """
    _check_count(n)
    if not 0 <= decay < 1:
        raise SelectionError(f"ema: expected a decay in [0, 1), found {decay}")
    j = np.arange(1, n + 1)
    c = (1 - decay) * np.power(float(decay), n - j)
    c[0] = float(decay) ** (n - 1)
    return c


def power_ema(steps: Sequence[float], sigma_rel: float = 0.1) -> Coefficients:
    """Power-function EMA of relative width `sigma_rel` (Karras et al., arXiv 2312.02696, eq. 121).

    ``c_j = (t_j/T)^(g+1) - (t_{j-1}/T)^(g+1)`` with ``t_0 = 0``, ``T = t_N``; the exponent g
    follows from ``sigma_rel = sqrt(g+1) / ((g+2) sqrt(g+3))``.

    Args:
      steps: times of the checkpoints since the start of training, positive and increasing.
      sigma_rel: standard deviation of the weighting as a share of T, in (0, 0.288).

    Raises:
      SelectionError: steps not positive and increasing, or `sigma_rel` out of range.
    """
    times = np.asarray(steps, np.float64)
    _check_count(len(times))
    if not (times[0] > 0 and np.all(np.diff(times) > 0) and np.isfinite(times[-1])):
        raise SelectionError("power_ema: steps must be positive and strictly increasing")
    exponent = gamma_of_sigma(sigma_rel) + 1
    return np.diff(np.power(times / times[-1], exponent), prepend=0.0)


def gamma_of_sigma(sigma_rel: float) -> float:
    """The exponent gamma >= 0 whose power-function EMA has relative width `sigma_rel`.

    Solves ``(g+1) = sigma^2 (g+2)^2 (g+3)`` (arXiv 2312.02696, eq. 126): 0.05 gives 16.97, 0.10
    gives 6.94.

    Raises:
      SelectionError: `sigma_rel` outside (0, 1/sqrt(12)], where no gamma >= 0 exists.
    """
    # Gamma = 0 is the uniform average over all of training, whose width is 1/sqrt(12).
    if not 0 < sigma_rel <= 12**-0.5:
        raise SelectionError(f"power_ema: expected sigma_rel in (0, 0.2886], found {sigma_rel}")
    t = sigma_rel**-2
    # g^3 + 7 g^2 + (16 - t) g + (12 - t) = 0 has one root >= 0 there: the largest real one.
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return float(max(roots.real[np.abs(roots.imag) < 1e-9].max(), 0.0))


DECAY_SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: (1.0 + math.cos(math.pi * t)) / 2.0,
    "1-sqrt": lambda t: 1.0 - math.sqrt(t),
}


def decay_equivalent(n: int, shape: str | Callable[[float], float] = "1-sqrt") -> Coefficients:
    """The average that acts as a learning-rate decay over the window (WSM, arXiv 2507.17634).

    For decay multipliers ``1 >= w_1 >= ... >= w_k >= 0`` on the k = N-1 stretches between the
    checkpoints 0..k: ``c_k = w_k``, ``c_j = w_j - w_{j+1}``, ``c_0 = 1 - w_1``, with
    ``w_i = shape(i / (k+1))``. ``"linear"`` (1-t) is exactly the uniform average.

    Args:
      n: number of checkpoints N.
      shape: ``"linear"``, ``"cosine"`` ((1+cos pi t)/2), ``"1-sqrt"`` (1-sqrt t), or any
        non-increasing function of [0, 1] to [0, 1].

    Raises:
      SelectionError: unknown shape, or multipliers that rise or leave [0, 1].
    """
    _check_count(n)
    if isinstance(shape, str):
        if shape not in DECAY_SHAPES:
            raise SelectionError(
                f"decay: expected one of {', '.join(DECAY_SHAPES)}, found {shape!r}"
            )
        shape = DECAY_SHAPES[shape]
    w = np.array([1.0, *(float(shape(i / n)) for i in range(1, n)), 0.0])
    if not np.all(np.isfinite(w)) or np.any(np.diff(w) > 0):
        raise SelectionError(
            f"decay: multipliers must fall from 1 to 0 without rising, found {w[1:-1].tolist()}"
        )
    return w[:-1] - w[1:]


def bema(
    steps: Sequence[float],
    bias_power: float = 0.2,
    *,
    ema_power: float = 0.5,
    multiplier: float = 1.0,
    lag: float = 10.0,
) -> Coefficients:
    """Bias-corrected EMA at the spacing of the checkpoints (BEMA, arXiv 2508.00180, algorithm 1).

    ``m_1 = theta_1``, ``m_j = (1 - b_j) m_{j-1} + b_j theta_j``, and the result is
    ``m_N + a_N (theta_N - theta_1)``, with ``b_j = (rho + gamma t_j)^-kappa`` and
    ``a_j = (rho + gamma t_j)^-eta``, where t_j counts from the oldest checkpoint in the unit of
    `steps`. The oldest may weigh less than nothing.

    >>> bema([1, 2, 3], bias_power=1, ema_power=1, lag=1)  # t = 0, 1, 2: b = 1/2, 1/3, a = 1/3
    array([0.        , 0.33333333, 0.66666667])

    Args:
      steps: times of the checkpoints, increasing.
      bias_power: eta.
      ema_power: kappa.
      multiplier: gamma.
      lag: rho.

    Raises:
      SelectionError: steps that do not increase, a negative power or multiplier, lag below 1.
    """
    times = np.asarray(steps, np.float64)
    _check_count(len(times))
    if not (np.all(np.diff(times) > 0) and np.all(np.isfinite(times))):
        raise SelectionError("bema: steps must be strictly increasing")
    if not (bias_power >= 0 and ema_power >= 0 and multiplier >= 0 and lag >= 1):
        raise SelectionError(
            "bema: expected powers and multiplier >= 0 and lag >= 1, found "
            f"{bias_power=}, {ema_power=}, {multiplier=}, {lag=}"
        )
    width = lag + multiplier * (times - times[0])
    b = width**-ema_power
    b[0] = 1.0
    # theta_j enters with b_j, and every later step leaves 1 - b of it.
    c = b * np.append(np.cumprod((1 - b)[:0:-1])[::-1], 1.0)
    a = float(width[-1] ** -bias_power)
    c[-1] += a
    c[0] -= a
    return c


def custom(weights: Sequence[float], *, normalize: bool = False) -> Coefficients:
    """Given weights, which must sum to 1 (to 1e-6) unless `normalize`.

    Raises:
      SelectionError: empty, not finite, summing to 0, or not to 1 without `normalize`.
    """
    w = np.asarray(weights, np.float64)
    if w.ndim != 1 or w.size == 0 or not np.all(np.isfinite(w)):
        raise SelectionError(f"weights: expected finite numbers, found {w.tolist()}")
    total = math.fsum(w)
    if abs(total - 1) > 1e-6 and not normalize:
        raise SelectionError(
            f"weights sum to {total:.9g}, expected 1; mend them or ask for normalisation"
        )
    if total == 0:
        raise SelectionError("weights sum to 0 and cannot be normalised")
    return w / total if normalize else w


METHODS = ("uniform", "linear", "ema", "power_ema", "decay", "bema")


def of_method(method: str, steps: Sequence[int]) -> Coefficients:
    """Coefficients by name: ``uniform``, ``linear``, ``ema[:decay]``, ``power_ema[:sigma_rel]``,
    ``decay[:shape]``, ``bema[:eta]``.

    >>> of_method("ema:0.5", [1, 2, 3])
    array([0.25, 0.25, 0.5 ])

    Args:
      method: the method, with its parameter after a colon.
      steps: the steps of the window, oldest first.

    Raises:
      SelectionError: unknown method or unusable parameter.
    """
    name, _, parameter = method.partition(":")
    n = len(steps)
    try:
        if name == "uniform" and not parameter:
            return uniform(n)
        if name == "linear" and not parameter:
            return linear(n)
        if name == "ema":
            return ema(n, float(parameter or 0.9))
        if name == "power_ema":
            return power_ema(steps, float(parameter or 0.1))
        if name == "decay":
            return decay_equivalent(n, parameter or "1-sqrt")
        if name == "bema":
            return bema(steps, float(parameter or 0.2))
    except ValueError as error:
        if isinstance(error, SelectionError):
            raise
        raise SelectionError(f"{method}: {parameter!r} is not a number") from error
    raise SelectionError(
        f"expected a method of {', '.join(METHODS)} with an optional :parameter, found {method!r}"
    )


def _check_count(n: int) -> None:
    if n < 1:
        raise SelectionError(f"an average needs at least 1 checkpoint, found {n}")


def check_weights(n: int, weights: Sequence[float] | None) -> tuple[list[float], float]:
    """Weights (all 1 by default) and their exactly rounded sum, after checking them.

    Raises:
      SelectionError: nothing to average, a wrong number of weights, one not finite, or sum zero.
    """
    if n < 1:
        raise SelectionError("there is nothing to average: expected at least 1 tree, found 0")
    w = [1.0] * n if weights is None else [float(x) for x in weights]
    if len(w) != n:
        raise SelectionError(f"expected {n} weights, one a tree, found {len(w)}")
    if not all(map(math.isfinite, w)):
        raise SelectionError(f"expected finite weights, found {w}")
    try:
        total = math.fsum(w)
    except OverflowError:
        raise SelectionError(f"weights too large to be summed: {w}") from None
    if total == 0:
        raise SelectionError(f"weights sum to zero: {w}")
    return w, total
