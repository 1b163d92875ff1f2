"""Optimizers without a learning rate, and learning-rate schedules on the host.

An optimizer turns gradients into a direction d; the step is ``params <- params - lr * d``. The
learning rate enters the jitted step as a number, so no schedule is compiled in and a resumed run
needs no schedule state.
"""

import math

import optax

# Leaves that older resume states name otherwise: how their names began, and how they begin now.
FORMER_NAMES = {"opt_state/momentum_buffer/": "opt_state/1/trace/"}


def current_name(leaf: str) -> str:
    """The name that a leaf of a stored resume state has today."""
    for former, current in FORMER_NAMES.items():
        if leaf.startswith(former):
            return current + leaf.removeprefix(former)
    return leaf


def sgd(
    momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    """PyTorch's SGD: the decay of every parameter is added to its gradient.

    ::

        g <- g + weight_decay * params            (biases and BatchNorm parameters too)
        b <- momentum * b + g                     (b = 0 at first, so that b = g as in torch)
        d  = g + momentum * b if nesterov else b

    Unlike `optax.sgd` the learning rate is no part of it; like PyTorch, and unlike Sutskever et
    al. 2013, the buffer does not hold the learning rate, which matters when it changes.

    Raises:
      ValueError: on update without params when there is weight decay; Nesterov without momentum.
    """
    if nesterov and momentum <= 0:
        raise ValueError("nesterov needs a positive momentum")
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(decay, optax.trace(momentum, nesterov))


def cosine(epoch: float, *, base: float, epochs: float) -> float:
    """Cosine annealing: ``base / 2 * (1 + cos(pi * epoch / epochs))``.

    PyTorch's ``CosineAnnealingLR(T_max=epochs)`` in closed form (Loshchilov and Hutter 2016, arXiv
    1608.03983). The paper steps it once an epoch: pass whole epochs, the first is 0.

    Example: ``cosine(45, base=0.1, epochs=90) == 0.05``.
    """
    return 0.5 * base * (1.0 + math.cos(math.pi * epoch / epochs))


def warmup_cosine(
    epoch: float, *, base: float, epochs: float, warmup: float = 0.0, start: float = 0.0
) -> float:
    """Linear from `start` to `base` during the first `warmup` epochs, then cosine to zero.

    With fractional epochs the warm-up moves every step. ``warmup=0`` is `cosine`.

    Raises:
      ValueError: a warm-up that is negative or leaves nothing after it.
    """
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup must be in [0, {epochs}) epochs, found {warmup}")
    if epoch < warmup:
        return start + (base - start) * epoch / warmup
    return cosine(epoch - warmup, base=base, epochs=epochs - warmup)
