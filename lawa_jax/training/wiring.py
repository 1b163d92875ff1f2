"""From a configuration to a task: what the training scripts and `lawa sweep --evaluate` share."""

from collections.abc import Sequence

from lawa_jax.data import datasets, imagenet
from lawa_jax.data.text import TextData, dummy_text, load_data_bin, prepare_embedded
from lawa_jax.errors import ConfigError
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.image_task import image_task
from lawa_jax.training.mesh import Placement
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import FAIRSEQ_SPLITS, roberta_network, text_task


def load_images(config: ImageConfig) -> datasets.ImageData:
    """The images that a configuration names."""
    if config.dataset == "digits":
        return datasets.load_digits(label_noise=config.label_noise)
    if config.dataset == "dummy":
        return datasets.load_dummy(
            config.dummy_examples, num_classes=config.dummy_classes, image_size=config.image_size
        )
    return imagenet.find(
        config.data_dir,
        image_size=config.image_size,
        resize=config.resize or None,
        dtype="uint8",  # normalised on the device
        shrink=config.shrink_on_load,
        corrupt_budget=config.corrupt_budget,
    )


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


def image_task_of(config: ImageConfig, data: datasets.ImageData, place: Placement) -> Task:
    """The task of a configuration."""
    return image_task(
        data,
        place=place,
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        arch=config.arch,
        compute_dtype=config.compute_dtype,
        learning_rate=config.learning_rate * config.batch_size / config.base_batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        warmup_epochs=config.warmup_epochs,
        schedule=config.schedule,
        label_smoothing=config.label_smoothing,
        accumulate=config.accumulate,
        bn_batches=config.bn_batches,
        bn_groups=config.bn_groups,
        threads=config.loader_threads,
        workers=config.loader_workers,
    )


def text_task_of(config: TextConfig, data: TextData, place: Placement) -> Task:
    """The task of a configuration.

    Raises:
      ConfigError: the text has another number of symbols than the configuration says.
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
        layers=config.layers,
        width=config.width,
        ffn_width=config.ffn_width,
        heads=config.heads,
        max_tokens=config.max_tokens,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation=config.activation,
        head_activation=config.head_activation,
        layer_norm_epsilon=config.layer_norm_epsilon,
        pre_norm=config.pre_norm,
        token_types=config.token_types,
        remat=config.remat,
        scan=config.scan,
    )
    return text_task(
        data,
        network,
        place=place,
        seed=config.seed,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_updates=config.warmup_updates,
        total_updates=config.total_updates,
        adam_b2=config.adam_b2,
        adam_eps=config.adam_eps,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
        lengths=config.lengths,
        masker=config.masker,
        eval_batch_size=config.eval_batch_size,
        eval_seed=config.eval_seed,
        mask_prob=config.mask_prob,
        threads=config.loader_threads,
    )
