"""EMAs reconstructed from snapshots of others: closed form, exactness, convergence."""

import itertools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lawa_jax.averaging import coefficients
from lawa_jax.averaging.posthoc_ema import (
    Profile,
    _products,
    posthoc_ema_weights,
    reconstruction_error,
)
from lawa_jax.errors import SelectionError

UNIFORM = 12**-0.5  # gamma = 0
LINEAR = 2**0.5 / 6  # gamma = 1: sqrt(2) / (3 sqrt(4))


def snapshots(count, widths=(0.05, 0.10), end=1000):
    return [Profile(s, end * (i + 1) / count) for i in range(count) for s in widths]


def test_inner_products_by_hand():
    # p = 1 on [0, 1] and 2t on [0, 1]: 1, 1 and 4/3; on [0, 2], 1/2: overlaps 1/2 and 1/2.
    profiles = [Profile(UNIFORM, 1), Profile(LINEAR, 1), Profile(UNIFORM, 2)]
    expected = [[1, 1, 1 / 2], [1, 4 / 3, 1 / 2], [1 / 2, 1 / 2, 1 / 2]]
    assert_allclose(_products(profiles, profiles), expected, rtol=1e-12)


def test_inner_products_are_the_integrals():
    profiles = [Profile(0.05, 7), Profile(0.10, 10), Profile(0.2, 4), Profile(UNIFORM, 9)]
    t = (np.arange(200_000) + 0.5) * 10 / 200_000
    p = [
        np.where(t <= T, (g + 1) * (t / T) ** g / T, 0)
        for g, T in ((coefficients.gamma_of_sigma(s), T) for s, T in profiles)
    ]
    integrals = [[(a * b).sum() * 10 / 200_000 for b in p] for a in p]
    assert_allclose(_products(profiles, profiles), integrals, rtol=1e-3)


def test_weights_by_hand():
    # Of 1 and 2t on [0, 1], the closest to 3t^2 with weights 1 - x and x: minimise the integral of
    # (1 + (2t - 1) x - 3t^2)^2, hence x = <2t - 1, 3t^2 - 1> / <2t - 1, 2t - 1> = (1/2) / (1/3).
    quadratic = 3**0.5 / (4 * 5**0.5)  # gamma = 2: sqrt(3) / (4 sqrt(5))
    stored, target = [Profile(UNIFORM, 1), Profile(LINEAR, 1)], Profile(quadratic, 1)
    x = posthoc_ema_weights(stored, target)
    assert_allclose(x, [-1 / 2, 3 / 2], rtol=1e-9)
    # What is left is 3t^2 - 3t + 1/2, of squared length 1/20, beside 9/5.
    assert reconstruction_error(stored, target, x) == pytest.approx(6**-1, rel=1e-9)


@pytest.mark.parametrize("count", [1, 4, 32])
def test_exact_where_it_is_stored(count):
    stored = snapshots(count)
    for position in (0, len(stored) // 2, -1):
        x = posthoc_ema_weights(stored, stored[position])
        expected = np.zeros(len(stored))
        expected[position] = 1
        assert_allclose(x, expected, atol=1e-9)
        assert reconstruction_error(stored, stored[position], x) < 1e-7  # the root of rounding


@pytest.mark.parametrize(("sigma", "least"), [(0.03, 8), (0.07, 8), (0.15, 8), (0.25, 4)])
def test_error_falls_with_the_number_of_snapshots(sigma, least):
    target = Profile(sigma, 1000)
    found = []
    for count in (2, 4, 8, 16, 32, 64):
        x = posthoc_ema_weights(snapshots(count), target)
        assert x.sum() == pytest.approx(1, abs=1e-12)
        found.append(reconstruction_error(snapshots(count), target, x))
    assert all(b < a for a, b in itertools.pairwise(found)), found
    # From 16 to 64 snapshots with up to the square of their distance.
    assert least < found[3] / found[5] < 20


def test_least_squares_of_the_paper_where_the_sum_is_free():
    stored, target = snapshots(32), Profile(0.07, 1000)
    free = np.linalg.solve(_products(stored, stored), _products(stored, [target])[:, 0])
    assert free.sum() == pytest.approx(1, abs=1e-4)
    x = posthoc_ema_weights(stored, target)
    assert_allclose(x, free, atol=1e-4)
    # The free sum fits a little better, and no other weights of sum 1 do.
    error = reconstruction_error(stored, target, x)
    assert reconstruction_error(stored, target, free) <= error
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = x + 1e-3 * generator.normal(size=x.size)
        assert reconstruction_error(stored, target, other / other.sum()) > error


def test_the_sum_is_a_constraint_and_no_afterthought():
    stored, target = snapshots(2), Profile(0.15, 1000)
    free = np.linalg.solve(_products(stored, stored), _products(stored, [target])[:, 0])
    assert free.sum() < 0.9
    x = posthoc_ema_weights(stored, target)
    scaled = reconstruction_error(stored, target, free / free.sum())
    assert reconstruction_error(stored, target, x) < 0.99 * scaled


def test_on_a_real_trajectory():
    # A random walk and the EMAs that training would have kept of it, step by step.
    steps = 2000
    theta = np.cumsum(np.random.default_rng(1).normal(size=(steps, 5)), axis=0)

    def ema(sigma, end):
        return coefficients.power_ema(range(1, end + 1), sigma) @ theta[:end]

    target = ema(0.15, steps)
    errors = []
    for count in (4, 16, 64):
        stored = [Profile(s, (i + 1) * steps // count) for i in range(count) for s in (0.05, 0.10)]
        x = posthoc_ema_weights(stored, Profile(0.15, steps))
        made = x @ np.array([ema(s, int(t)) for s, t in stored])
        errors.append(np.linalg.norm(made - target) / np.linalg.norm(target - theta[-1]))
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 2
    assert errors[2] < 1e-2


@pytest.mark.parametrize(
    ("stored", "target", "message"),
    [
        ([], Profile(0.1, 1), "there are no snapshots"),
        ([Profile(0.1, 1)] * 2, Profile(0.1, 1), "of sigma_rel 0.1 at 1 is there twice"),
        ([Profile(0.1, 0)], Profile(0.1, 1), "expected steps > 0, found [0.0]"),
        ([Profile(0.1, 1)], Profile(0.5, 1), "expected sigma_rel in (0, 0.2886], found 0.5"),
    ],
)
def test_mistakes_are_explained(stored, target, message):
    with pytest.raises(SelectionError, match=re.escape(message)):
        posthoc_ema_weights(stored, target)
