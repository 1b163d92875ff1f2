"""A strict JAX for every test: no silent promotion, no silent broadcasting, several devices."""

import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
# Child processes inherit the number of devices through the environment.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# In the background of a shell SIGINT is ignored, and in all children too, some of which are tested
# by interrupting them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Compilation makes the first example slow; no test depends on the clock.
hypothesis.settings.register_profile("lawa", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("lawa")
