"""Masked language modelling by RoBERTa as a `Task` for the loop."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from lawa_jax.data import Batch
from lawa_jax.data.batching import (
    MaskedBatches,
    bucket_lengths,
    evaluation_order,
    plan_batches,
    training_order,
)
from lawa_jax.data.blocks import Blocks
from lawa_jax.data.masking import MASK_RATE, FairseqMasker, FastMasker
from lawa_jax.data.text import TextData
from lawa_jax.errors import ConfigError
from lawa_jax.models.functional import Functional, Model, functional
from lawa_jax.models.roberta import Roberta
from lawa_jax.training.adam import adam, polynomial_decay
from lawa_jax.training.mesh import Placement
from lawa_jax.training.mlm import masked_lm_loss
from lawa_jax.training.steps import TrainState, init_state, make_eval_step, make_train_step
from lawa_jax.training.task import Task

# Names of the trainers' splits in a data-bin directory.
FAIRSEQ_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_EVALUATION_EPOCH = 1  # fairseq's, at whatever epoch it evaluates
_EVALUATED_PER_DEVICE = 32


def roberta_network(compute_dtype: str = "float32", **sizes: Any) -> Functional:
    """A RoBERTa as pure functions; `sizes` are those of `lawa_jax.models.roberta.Roberta`."""
    return functional(lambda rngs: Roberta(dtype=jnp.dtype(compute_dtype), rngs=rngs, **sizes))


def text_task(
    data: TextData,
    network: Functional,
    *,
    place: Placement,
    seed: int,
    batch_size: int,
    learning_rate: float = 5e-4,
    schedule: str = "polynomial",
    warmup_updates: int = 10_000,
    total_updates: int = 125_000,
    adam_b2: float = 0.98,
    adam_eps: float = 1e-6,
    weight_decay: float = 0.01,
    accumulate: int = 1,
    lengths: int = 4,
    masker: str = "fast",
    eval_batch_size: int = 0,
    eval_seed: int = 1,
    mask_prob: float = MASK_RATE,
    threads: int = 4,
) -> Task:
    """RoBERTa on blocks of text, trained as the paper did with fairseq.

    Blocks of similar length share a batch. A batch's blocks, their order and their masks are
    functions of (seed, epoch); rows that fill up a last batch hold no target and count nowhere.

    Args:
      data: with the splits that will be asked for; "train" for training.
      network: see `roberta_network`; its vocabulary is the dictionary's.
      place: devices.
      seed: of initialisation, order, masks and dropout.
      batch_size: blocks an update sees.
      learning_rate, schedule, warmup_updates, total_updates: see `polynomial_decay`;
        "constant" stays at the peak after warm-up.
      adam_b2, adam_eps, weight_decay: of `adam`.
      accumulate: parts a batch is worked through in.
      lengths: padded lengths.
      masker: "fast" or "fairseq", of training blocks.
      eval_batch_size: blocks evaluated at once; 0: see `evaluated_rows`.
      eval_seed: of the masks and the order of evaluation.
      mask_prob: share of the tokens that are hidden and predicted.
      threads: masking threads.

    Raises:
      ConfigError: batches that do not fit the devices, or the data.
    """
    part = batch_size // accumulate
    place.check_batch(part)
    eval_batch_size = evaluated_rows(eval_batch_size, part, place.device_count)
    place.check_batch(eval_batch_size)
    exact = FairseqMasker(data.dictionary, mask_rate=mask_prob)
    fast = FastMasker(data.dictionary, mask_rate=mask_prob)
    training_masker = exact if masker == "fairseq" else fast
    train = data.splits.get("train")
    buckets = {
        name: bucket_lengths(blocks.sizes[blocks.usable], lengths)
        for name, blocks in data.splits.items()
    }

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        blocks = _split(data, "train")
        plan = plan_batches(
            blocks,
            training_order(blocks, seed, epoch),
            batch_size=batch_size,
            lengths=_within(buckets["train"], blocks),
            shuffle=(seed, epoch),
        )
        made = MaskedBatches(
            blocks, training_masker, plan, seed=seed, epoch=epoch, process=place.process
        )
        return made.iterate(start // batch_size, threads=threads)

    def evaluation(split: str) -> Iterator[Batch]:
        blocks = _split(data, split)
        plan = plan_batches(
            blocks,
            evaluation_order(blocks, eval_seed),
            batch_size=eval_batch_size,
            lengths=_within(buckets[FAIRSEQ_SPLITS[split]], blocks),
        )
        made = MaskedBatches(
            blocks,
            exact,
            plan,
            seed=eval_seed,
            epoch=_EVALUATION_EPOCH,
            process=place.process,
        )
        return made.iterate(threads=threads)

    def rate(step: int) -> float:
        if schedule == "constant":
            return learning_rate * min(1.0, step / warmup_updates if warmup_updates else 1.0)
        return polynomial_decay(
            step, peak=learning_rate, warmup=warmup_updates, horizon=total_updates
        )

    rows, tokens = _epoch_size(train, batch_size, buckets.get("train", ()), seed)
    optimizer = adam(b2=adam_b2, eps=adam_eps, weight_decay=weight_decay)
    plain_loss = masked_lm_loss(network)

    def loss_fn(model: Model, batch: Batch, key: Any, train: bool) -> Any:
        return plain_loss(place.gathered(model), batch, key, train)

    def init() -> TrainState:
        return init_state(network.init(seed), optimizer)

    return Task(
        unit="tokens",
        seed=seed,
        init=init,
        train_step=make_train_step(loss_fn, optimizer, accumulate=accumulate, keep=place.kept),
        eval_step=make_eval_step(loss_fn),
        learning_rate=rate,
        train_batches=batches,
        eval_batches=evaluation,
        recalibrate=None,
        batch_size=batch_size,
        samples_per_epoch=rows,
        place=place,
        units_per_sample=tokens / max(1, rows),
        derived=lambda means: {"perplexity": float(np.exp2(means["loss"]))},
    )


def evaluated_rows(wanted: int, part: int, devices: int) -> int:
    """Blocks evaluated at once: as wanted, or a part of a training batch, at most 32 a device.

    Of RoBERTa-base they need 0.6 GB for logits; a converted run knows nothing but the paper's batch
    of 2,048. Figures do not depend on it: every block has masks of its own, and tokens are counted.
    """
    return wanted or min(part, _EVALUATED_PER_DEVICE * devices)


def padding_waste(data: TextData, *, batch_size: int, lengths: int, seed: int = 0) -> float:
    """Share of the positions of an epoch's batches that is padding, in [0, 1)."""
    blocks = _split(data, "train")
    sizes = _within(bucket_lengths(blocks.sizes[blocks.usable], lengths), blocks)
    order = training_order(blocks, seed, 1)
    return plan_batches(blocks, order, batch_size=batch_size, lengths=sizes).waste


def _split(data: TextData, split: str) -> Blocks:
    name = FAIRSEQ_SPLITS.get(split, split)
    if name not in data.splits:
        raise ConfigError(
            f"there is no split {split!r}; expected {', '.join(FAIRSEQ_SPLITS)}, opened: "
            f"{', '.join(data.splits)}"
        )
    return data.splits[name]


def _within(lengths: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    """Bucket lengths rounded up for speed, but never beyond what the model has positions for."""
    return tuple(min(length, blocks.max_tokens) for length in lengths)


def _epoch_size(
    blocks: Blocks | None, batch_size: int, lengths: tuple[int, ...], seed: int
) -> tuple[int, int]:
    """Rows of an epoch's batches (the same in every epoch), and tokens in them."""
    if blocks is None:
        return 0, 0
    order = training_order(blocks, seed, 1)
    plan = plan_batches(blocks, order, batch_size=batch_size, lengths=_within(lengths, blocks))
    return plan.rows.size, plan.tokens
