"""Masked language modelling by RoBERTa as a `Task` for the loop."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lawa_jax.data import Batch
from lawa_jax.data.batching import (
    BatchPlan,
    MaskedBatches,
    bucket_lengths,
    evaluation_order,
    plan_batches,
    training_order,
)
from lawa_jax.data.blocks import Blocks
from lawa_jax.data.masking import FairseqMasker, FastMasker
from lawa_jax.data.text import TextData, dummy_text, load_data_bin, prepare_embedded
from lawa_jax.errors import ConfigError
from lawa_jax.models.functional import Functional, Model, functional
from lawa_jax.models.roberta import Roberta
from lawa_jax.training.adam import adam, polynomial_decay
from lawa_jax.training.mesh import Placement
from lawa_jax.training.mlm import masked_lm_loss
from lawa_jax.training.steps import TrainState, init_state, make_eval_step, make_train_step
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig

# Names of the trainers' splits in a data-bin directory.
FAIRSEQ_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_EVALUATION_EPOCH = 1  # fairseq's, at whatever epoch it evaluates
_EVALUATED_PER_DEVICE = 32
# Fields of the configuration that the model is built from, by the same names.
_MODEL_FIELDS = (
    *("layers", "width", "ffn_width", "heads", "max_tokens"),
    *("dropout", "attention_dropout", "remat", "scan"),
    *("activation", "head_activation", "layer_norm_epsilon", "pre_norm", "token_types"),
)


def roberta_network(compute_dtype: str = "float32", **sizes: Any) -> Functional:
    """A RoBERTa as pure functions; `sizes` are those of `lawa_jax.models.roberta.Roberta`."""
    return functional(lambda rngs: Roberta(dtype=jnp.dtype(compute_dtype), rngs=rngs, **sizes))


def load_text(config: TextConfig, splits: Sequence[str]) -> TextData:
    """The splits (train, val, test) of the text that a configuration names."""
    if config.dataset == "dummy":
        return dummy_text(config.dummy_blocks, max_tokens=config.max_tokens)
    if config.dataset == "embedded":
        prepare_embedded(config.data_dir, vocab_size=config.embedded_vocabulary)
    for split in splits:
        if split not in FAIRSEQ_SPLITS:
            raise ConfigError(f"--splits: expected {', '.join(FAIRSEQ_SPLITS)}, found {split!r}")
    return load_data_bin(
        config.data_dir,
        splits=[FAIRSEQ_SPLITS[split] for split in splits],
        tokens_per_sample=config.tokens_per_sample or config.max_tokens,
    )


def text_task(config: TextConfig, data: TextData, place: Placement) -> Task:
    """RoBERTa on blocks of text, trained as the paper did with fairseq.

    Blocks of similar length share a batch. A batch's blocks, their order and their masks are
    functions of (seed, epoch); rows that fill up a last batch hold no target and count nowhere.

    Args:
      config: model, optimizer, schedule and batches; see `polynomial_decay` and `adam`.
      data: with the splits that will be asked for; "train" for training.
      place: devices.

    Raises:
      ConfigError: batches that do not fit the devices, or the data; a text of another number of
        symbols than the configuration says.
    """
    symbols = len(data.dictionary)
    if config.vocab_size not in (0, symbols):
        raise ConfigError(
            f"vocab_size: the model has {config.vocab_size} symbols, the dictionary in "
            f"{config.data_dir} {symbols}; give the --data_dir the model was trained on"
        )
    network = roberta_network(
        config.compute_dtype,
        vocab_size=symbols,
        **{name: getattr(config, name) for name in _MODEL_FIELDS},
    )
    batch_size, seed, threads = config.batch_size, config.seed, config.loader_threads
    part = batch_size // config.accumulate
    place.check_batch(part)
    eval_batch_size = evaluated_rows(config.eval_batch_size, part, place.device_count)
    place.check_batch(eval_batch_size)
    exact = FairseqMasker(data.dictionary, mask_rate=config.mask_prob)
    fast = FastMasker(data.dictionary, mask_rate=config.mask_prob)
    training_masker = exact if config.masker == "fairseq" else fast
    buckets = {
        name: bucket_lengths(blocks.sizes[blocks.usable], config.lengths)
        for name, blocks in data.splits.items()
    }

    def training_plan(blocks: Blocks, epoch: int) -> BatchPlan:
        return plan_batches(
            blocks,
            training_order(blocks, seed, epoch),
            batch_size=batch_size,
            lengths=_within(buckets["train"], blocks),
            shuffle=(seed, epoch),
        )

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        blocks = _split(data, "train")
        plan = training_plan(blocks, epoch)
        made = MaskedBatches(
            blocks, training_masker, plan, seed=seed, epoch=epoch, process=place.process
        )
        return made.iterate(start // batch_size, threads=threads)

    def evaluation(split: str) -> Iterator[Batch]:
        blocks = _split(data, split)
        plan = plan_batches(
            blocks,
            evaluation_order(blocks, config.eval_seed),
            batch_size=eval_batch_size,
            lengths=_within(buckets[FAIRSEQ_SPLITS[split]], blocks),
        )
        made = MaskedBatches(
            blocks,
            exact,
            plan,
            seed=config.eval_seed,
            epoch=_EVALUATION_EPOCH,
            process=place.process,
        )
        return made.iterate(threads=threads)

    def rate(step: int) -> float:
        peak, warmup = config.learning_rate, config.warmup_updates
        if config.schedule == "constant":
            return peak * min(1.0, step / warmup if warmup else 1.0)
        return polynomial_decay(step, peak=peak, warmup=warmup, horizon=config.total_updates)

    # The same in every epoch.
    first = training_plan(data.splits["train"], 1) if "train" in data.splits else None
    rows, tokens = (first.rows.size, first.tokens) if first is not None else (0, 0)
    optimizer = adam(b2=config.adam_b2, eps=config.adam_eps, weight_decay=config.weight_decay)
    plain_loss = masked_lm_loss(network)

    def loss_fn(model: Model, batch: Batch, key: Any, train: bool) -> Any:
        return plain_loss(place.gathered(model), batch, key, train)

    def init() -> TrainState:
        return init_state(network.init(seed), optimizer)

    return Task(
        unit="tokens",
        seed=seed,
        init=init,
        train_step=make_train_step(
            loss_fn, optimizer, accumulate=config.accumulate, keep=place.kept
        ),
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


def padding_waste(data: TextData, *, batch_size: int, lengths: int) -> float:
    """Share of the positions of an epoch's batches that is padding, in [0, 1)."""
    blocks = _split(data, "train")
    sizes = _within(bucket_lengths(blocks.sizes[blocks.usable], lengths), blocks)
    order = training_order(blocks, 0, 1)
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
