import math

import jax.numpy as jnp

from lawa_jax.training.metrics import Totals, total_of


def test_sums_and_counts_are_added_before_dividing():
    batches = [
        {"loss": (jnp.float32(6.0), jnp.int32(2))},
        {"loss": (jnp.float32(2.0), jnp.int32(6))},
    ]
    # The average of the batch averages would be 1.67.
    assert total_of(batches).means() == {"loss": 1.0}


def test_totals_go_on_from_stored_pairs():
    totals = Totals({"loss": (6.0, 2.0)})
    totals.add({"loss": (2.0, 6.0)})
    assert totals.pairs() == {"loss": (8.0, 8.0)}


def test_nothing_counted_is_nan_not_an_error():
    assert math.isnan(Totals({"loss": (0.0, 0.0)}).means()["loss"])
