"""Masked language modelling: the loss function that training and evaluation steps take."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lawa_jax.data.dictionary import PAD
from lawa_jax.models.functional import Functional, Model

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
