import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lawa_jax.averaging import coefficients as co
from lawa_jax.errors import SelectionError

ULP = 2.0**-52


def refusal(text):
    return pytest.raises(SelectionError, match=re.escape(text))


def trajectory(n, seed=0):
    """n checkpoints of 7 numbers, and the deltas between them: float64[n, 7], float64[n-1, 7]."""
    rng = np.random.default_rng(seed)
    start, deltas = rng.normal(size=(1, 7)), rng.normal(size=(n - 1, 7))
    return np.concatenate([start, start + np.cumsum(deltas, axis=0)]), deltas


def test_uniform():
    assert_array_equal(co.uniform(4), [0.25, 0.25, 0.25, 0.25])
    assert_array_equal(co.uniform(1), [1.0])


def test_linear():
    assert_allclose(co.linear(3), [1 / 6, 2 / 6, 3 / 6], rtol=ULP)
    assert_array_equal(co.linear(1), [1.0])


def test_ema():
    assert_array_equal(co.ema(3, 0.5), [0.25, 0.25, 0.5])
    assert_allclose(co.ema(3), [0.81, 0.09, 0.1], rtol=4 * ULP)
    assert_array_equal(co.ema(1), [1.0])
    assert_array_equal(co.ema(3, 0.0), [0.0, 0.0, 1.0])
    # The paper weighs the newest by 0.9.
    assert co.ema(5, 0.1)[-1] == 0.9


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_ema_is_its_recursion_started_at_the_oldest(n, decay):
    theta, _ = trajectory(n)
    a = theta[0]
    for x in theta[1:]:
        a = decay * a + (1 - decay) * x
    assert_allclose(co.ema(n, decay) @ theta, a, rtol=1e-13, atol=1e-13)


# sigma_rel = sqrt(g+1) / ((g+2) sqrt(g+3)) at g = 1 and 3, by hand.
@pytest.mark.parametrize(
    ("sigma", "gamma"), [(math.sqrt(2) / 6, 1.0), (2 / (5 * math.sqrt(6)), 3.0), (12**-0.5, 0.0)]
)
def test_gamma_by_hand(sigma, gamma):
    assert co.gamma_of_sigma(sigma) == pytest.approx(gamma, abs=1e-12)


def test_gamma_as_published():
    assert co.gamma_of_sigma(0.05) == pytest.approx(16.97, abs=0.005)
    assert co.gamma_of_sigma(0.10) == pytest.approx(6.94, abs=0.005)


@given(st.floats(1e-3, 12**-0.5))
def test_gamma_solves_the_definition_of_sigma(sigma):
    g = co.gamma_of_sigma(sigma)
    assert g >= 0
    assert math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3)) == pytest.approx(sigma, rel=1e-9)


def test_power_ema_by_hand():
    # gamma = 1: squares of 1/4, 2/4 and 4/4 and their differences.
    assert_allclose(
        co.power_ema([1, 2, 4], math.sqrt(2) / 6), [1 / 16, 3 / 16, 12 / 16], rtol=1e-12
    )
    assert_array_equal(co.power_ema([7], 0.1), [1.0])


@pytest.mark.parametrize("sigma", [0.05, 0.10, 0.28])
def test_power_ema_is_its_recursion_where_every_step_is_a_checkpoint(sigma):
    # arXiv 2312.02696: a_t = beta_t a_{t-1} + (1 - beta_t) theta_t.
    gamma, (theta, _) = co.gamma_of_sigma(sigma), trajectory(40)
    a = np.zeros(7)
    for t, x in enumerate(theta, start=1):
        beta = (1 - 1 / t) ** (gamma + 1)
        a = beta * a + (1 - beta) * x
    assert_allclose(co.power_ema(range(1, 41), sigma) @ theta, a, rtol=1e-12, atol=1e-12)


def test_power_ema_holds_a_checkpoint_for_all_steps_up_to_it():
    # Between checkpoints at 3, 5 and 9 the recursion sees the next checkpoint's weights.
    gamma, (theta, _) = co.gamma_of_sigma(0.1), trajectory(3)
    a = np.zeros(7)
    for t in range(1, 10):
        beta = (1 - 1 / t) ** (gamma + 1)
        a = beta * a + (1 - beta) * theta[np.searchsorted([3, 5, 9], t)]
    assert_allclose(co.power_ema([3, 5, 9], 0.1) @ theta, a, rtol=1e-12, atol=1e-12)


def test_power_ema_has_the_width_it_was_asked_for():
    t = np.arange(1, 20_001)
    c = co.power_ema(t, 0.1)
    mean = (c * t).sum()
    assert math.sqrt((c * (t - mean) ** 2).sum()) / t[-1] == pytest.approx(0.1, rel=1e-3)


def test_bema_by_hand():
    # t = 0, 1, 2: b = 1, 1/2, 1/3, so that the mean weighs all alike; a = 1/3 or (1/3)^2.
    assert_allclose(
        co.bema([1, 2, 3], 1, ema_power=1, lag=1), [0, 1 / 3, 2 / 3], rtol=1e-15, atol=1e-15
    )
    assert_allclose(co.bema([5, 6, 7], 2, ema_power=1, lag=1), [2 / 9, 3 / 9, 4 / 9], rtol=1e-15)
    assert_array_equal(co.bema([7]), [1.0])
    # Nothing is averaged, and nothing corrected: the newest, twice less the oldest.
    assert_array_equal(co.bema([1, 2], 0, ema_power=0), [-1.0, 2.0])


@pytest.mark.parametrize("steps", [range(1, 30), [100, 200, 300], [3, 4, 9, 50]])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_bema_is_its_recursion(steps, eta):
    theta, _ = trajectory(len(steps))
    mean = theta[0]
    for x, step in zip(theta[1:], steps[1:], strict=True):
        b = (10 + step - steps[0]) ** -0.5
        mean = (1 - b) * mean + b * x
    expected = mean + (10 + steps[-1] - steps[0]) ** -eta * (theta[-1] - theta[0])
    c = co.bema(steps, eta)
    assert_allclose(c @ theta, expected, rtol=1e-13, atol=1e-13)
    assert math.fsum(c) == pytest.approx(1, abs=1e-15)
    assert_array_equal(co.of_method(f"bema:{eta}", list(steps)), c)


def test_bema_refused():
    with refusal("bema: steps must be strictly increasing"):
        co.bema([1, 1])
    with refusal("bias_power=-1.0"):
        co.of_method("bema:-1", [1, 2])
    with refusal("lag=0.5"):
        co.bema([1, 2], lag=0.5)


def test_decay_test_vectors():
    assert_allclose(
        co.decay_equivalent(10),
        [0.316, 0.131, 0.101, 0.085, 0.075, 0.067, 0.062, 0.058, 0.054, 0.051],
        atol=5e-4,
    )
    assert_allclose(
        co.decay_equivalent(10, "cosine"),
        [0.024, 0.071, 0.111, 0.139, 0.155, 0.155, 0.139, 0.111, 0.071, 0.024],
        atol=5.1e-4,
    )


@given(st.integers(1, 300))
def test_linear_decay_is_the_uniform_average(n):
    assert_allclose(co.decay_equivalent(n, "linear"), co.uniform(n), atol=ULP)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", lambda t: (1 - t) ** 3])
def test_decay_acts_as_an_optimizer_whose_steps_were_decayed(n, shape):
    theta, deltas = trajectory(n, seed=n)
    multiplier = co.DECAY_SHAPES[shape] if isinstance(shape, str) else shape
    decayed = theta[0]
    for i, delta in enumerate(deltas, start=1):
        decayed = decayed + multiplier(i / n) * delta
    assert_allclose(co.decay_equivalent(n, shape) @ theta, decayed, rtol=1e-13, atol=1e-13)


def test_decay_of_any_shape():
    assert_array_equal(co.decay_equivalent(3, lambda t: 0.5), [0.5, 0.0, 0.5])
    assert_array_equal(co.decay_equivalent(3, lambda t: 1.0), [0.0, 0.0, 1.0])
    assert_array_equal(co.decay_equivalent(3, lambda t: 0), [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (lambda t: t, "[0.25, 0.5, 0.75]"),
        (lambda t: 2 - t, "[1.75, 1.5, 1.25]"),
        (lambda t: 0.25 - t, "[0.0, -0.25, -0.5]"),
        (lambda t: math.nan, "[nan, nan, nan]"),
    ],
)
def test_decay_multipliers_fall_from_one_to_zero(shape, found):
    with refusal(f"decay: multipliers must fall from 1 to 0 without rising, found {found}"):
        co.decay_equivalent(4, shape)


def test_unknown_decay():
    with refusal("decay: expected one of linear, cosine, 1-sqrt, found 'step'"):
        co.decay_equivalent(4, "step")


def test_custom_weights():
    assert_array_equal(co.custom([0.25, 0.75]), [0.25, 0.75])
    assert_array_equal(co.custom([1, 3], normalize=True), [0.25, 0.75])
    assert_array_equal(co.custom([2, -1]), [2.0, -1.0])
    # 0.1 + 0.2 + 0.7 is a rounding error away from 1.
    assert_array_equal(co.custom([0.1, 0.2, 0.7]), [0.1, 0.2, 0.7])


def test_custom_weights_refused():
    with refusal("weights sum to 4, expected 1; mend them or ask for normalisation"):
        co.custom([1, 3])
    with refusal("weights sum to 0 and cannot be normalised"):
        co.custom([1, -1], normalize=True)
    for bad in ([], [1.0, math.nan], [math.inf], [[1.0]], 1.0):
        with refusal(f"weights: expected finite numbers, found {np.array(bad).tolist()}"):
            co.custom(bad, normalize=True)


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, math.nan])
def test_ema_decay_out_of_range(decay):
    with refusal(f"ema: expected a decay in [0, 1), found {decay}"):
        co.ema(3, decay)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.2887, math.nan])
def test_sigma_out_of_range(sigma):
    with refusal(f"power_ema: expected sigma_rel in (0, 0.2886], found {sigma}"):
        co.power_ema([1, 2], sigma)


@pytest.mark.parametrize("steps", [[0, 1], [-1, 2], [1, 1], [2, 1], [math.nan, 1], [1, math.inf]])
def test_power_ema_steps_out_of_order(steps):
    with refusal("power_ema: steps must be positive and strictly increasing"):
        co.power_ema(steps)


@pytest.mark.parametrize(
    "make", [co.uniform, co.linear, co.ema, co.decay_equivalent, lambda n: co.power_ema([])]
)
def test_nothing_to_average(make):
    with refusal("an average needs at least 1 checkpoint, found 0"):
        make(0)


STEPS = [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("uniform", co.uniform(4)),
        ("linear", co.linear(4)),
        ("ema", co.ema(4, 0.9)),
        ("ema:0.5", co.ema(4, 0.5)),
        ("power_ema", co.power_ema(STEPS, 0.1)),
        ("power_ema:0.05", co.power_ema(STEPS, 0.05)),
        ("decay", co.decay_equivalent(4, "1-sqrt")),
        ("decay:cosine", co.decay_equivalent(4, "cosine")),
        ("bema", co.bema(STEPS)),
        ("bema:1", co.bema(STEPS, 1.0)),
    ],
)
def test_methods_by_name(method, expected):
    assert_array_equal(co.of_method(method, STEPS), expected)
    assert method.partition(":")[0] in co.METHODS


def test_methods_misnamed():
    with refusal(
        "expected a method of uniform, linear, ema, power_ema, decay, bema with an optional "
        ":parameter, found 'median'"
    ):
        co.of_method("median", STEPS)
    with refusal("found 'uniform:3'"):
        co.of_method("uniform:3", STEPS)
    with refusal("ema:fast: 'fast' is not a number"):
        co.of_method("ema:fast", STEPS)
    with refusal("found 1.0"):
        co.of_method("ema:1.0", STEPS)
    with refusal("found 'step'"):
        co.of_method("decay:step", STEPS)
    with refusal("at least 1 checkpoint"):
        co.of_method("uniform", [])


@given(
    st.integers(1, 200),
    st.sampled_from([*co.METHODS, "ema:0.999", "ema:0", "power_ema:0.05", "decay:cosine"]),
)
def test_coefficients_are_weights(n, method):
    c = co.of_method(method, range(1, n + 1))
    assert c.shape == (n,)
    assert c.dtype == np.float64
    # BEMA takes away from the oldest what it adds to the newest.
    assert np.all(c[method == "bema" :] >= 0)
    assert float(abs(sum(map(Fraction, c.tolist())) - 1)) <= n * ULP
