"""Names of slices."""

import importlib.util

import pytest

from lawa_jax.errors import ConfigError, MissingDependencyError
from lawa_jax.planning.topology import CHIPS, describe, parse_slice


def test_a_name_gives_its_chip():
    assert parse_slice("v5e:16x16") == ("v5e", CHIPS["v5e"])
    assert parse_slice("v5p:2x2x4")[1].memory == 95 << 30


@pytest.mark.parametrize("name", ["v5e", "v5e:256", "v9z:2x2", "v5e:2x2x2x2", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"expected GENERATION:SHAPE such as v5e:16x16"):
        parse_slice(name)


@pytest.mark.parametrize(
    "name", ["v5e:0x4", "v5e:4x0", "v5p:2x2x0", "v5e:4x4x4", "v6e:2x2x2", "v5e:32x32", "v4:9999x1"]
)
def test_shapes_that_would_end_the_process_are_refused(name):
    """libtpu divides by zero or fails a check, which no exception reaches."""
    with pytest.raises(ConfigError, match=rf"--plan {name}: a v\w+ slice has at most [23] sides"):
        parse_slice(name)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lawa-jax\[tpu-plan\]'"):
        describe("v5e:4x4")
