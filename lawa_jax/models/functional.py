"""The one boundary between Flax NNX modules and pure nested dicts.

Inside, models are NNX modules. Everywhere else a model is a plain dict of arrays,
``{"params": {...}, "batch_stats": {...}}`` (the second only where there are batch statistics),
which `jax.jit` dispatches fastest, Orbax stores under clean names and averaging understands.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lawa_jax.errors import TreeMismatchError

Model = dict[str, Any]


class Functional(NamedTuple):
    """A module as two pure functions.

    Attributes:
      init: ``init(seed) -> model``: fresh parameters (and batch statistics), a nested dict with
        string keys.
      apply: ``apply(model, *inputs, train=False, **kwargs) -> (outputs, batch_stats)``: the
        module's ``__call__(*inputs, train=train, **kwargs)``; `batch_stats` are the updated
        statistics (``{}`` for modules without). `train` is static.
    """

    init: Callable[[int], Model]
    apply: Callable[..., tuple[Any, dict[str, Any]]]


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Turn a module's constructor into pure functions on nested dicts.

    The module may hold `nnx.Param` and `nnx.BatchStat` variables and nothing else; randomness
    (dropout) is passed to ``__call__`` as an explicit key, so that no generator state ends up in
    checkpoints or averages.

    Args:
      build: makes the module from ``nnx.Rngs``, e.g. ``lambda rngs: ResNet(depth=50, rngs=rngs)``.
    """

    def parts(module: nnx.Module) -> tuple[nnx.GraphDef, Any, Any]:
        graphdef, states = nnx.split(module)
        params, stats = nnx.split_state(states, nnx.Param, nnx.BatchStat)
        return graphdef, params, stats

    @jax.jit
    def make(key: jax.Array) -> Model:
        _, params, stats = parts(build(nnx.Rngs(key)))
        model = {"params": _string_keys(nnx.to_pure_dict(params))}
        if stats:
            model["batch_stats"] = _string_keys(nnx.to_pure_dict(stats))
        return model

    def init(seed: int) -> Model:
        return make(jax.random.key(seed))

    template: list[tuple[nnx.GraphDef, Any, Any]] = []

    def abstract() -> tuple[nnx.GraphDef, Any, Any]:
        if not template:
            template.append(parts(nnx.eval_shape(lambda: build(nnx.Rngs(0)))))
        return template[0]

    def apply(
        model: Model, *inputs: Any, train: bool = False, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        graphdef, params, stats = abstract()
        module = nnx.merge(
            graphdef,
            _filled(params, model["params"]),
            _filled(stats, model.get("batch_stats", {})),
        )
        outputs = module(*inputs, train=train, **kwargs)
        updated = nnx.to_pure_dict(parts(module)[2])
        return outputs, _string_keys(updated)

    return Functional(init, apply)


def _filled(state: Any, values: dict[str, Any]) -> Any:
    """A copy of an abstract state holding `values`, whose string keys are matched to its own.

    `nnx.merge` keeps old values silently where keys differ in type, and an output layer for other
    classes computes nonsense without complaint, so a difference is an error.

    Raises:
      TreeMismatchError: leaves or shapes differ.
    """
    flat = nnx.to_flat_state(state)
    leaves = {
        tuple(jax.tree_util.keystr((k,), simple=True) for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]
    }
    wanted = {tuple(map(str, path)) for path, _ in flat}
    if wanted != leaves.keys():
        odd = sorted("/".join(keys) for keys in wanted ^ leaves.keys())
        whose = "the module" if tuple(odd[0].split("/")) in wanted else "the weights"
        raise TreeMismatchError(
            f"these weights are of another model: they differ in {len(odd)} leaves, first "
            f"{odd[0]!r}, which only {whose} has; choose the architecture they were trained with"
        )
    for path, variable in flat:
        expected, found = variable.get_value().shape, np.shape(leaves[tuple(map(str, path))])
        if expected != found:
            raise TreeMismatchError(
                f"these weights are of another model: leaf {'/'.join(map(str, path))!r} has shape "
                f"{found}, expected {expected}; choose the architecture and the data (number of "
                "classes, vocabulary) they were trained with"
            )
    return nnx.from_flat_state(
        [(path, variable.replace(leaves[tuple(map(str, path))])) for path, variable in flat]
    )


def _string_keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree
