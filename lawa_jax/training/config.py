"""Configurations are frozen dataclasses that serve as command line, config file and JSON."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from lawa_jax.errors import ConfigError


def _count(words: list[str]) -> int:
    return 0 if words == ["all"] else int(words[0])


# A number of batches whose 0 is also called "all".
BatchCount = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|all",
        instance_from_str=_count,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value) if value else "all"],
    ),
]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The fields that every training run has."""

    run_dir: str = ""
    """The directory of the run. By default it is runs/<name of the configuration>-seed<seed>."""
    seed: int = 0
    """The seed of initialisation, data order, augmentation and dropout."""
    epochs: int = 90
    """The last epoch to train."""
    batch_size: int = 256
    """The number of samples per update, over all devices."""
    lawa_k: int = 5
    """Average this many of the latest epoch checkpoints; 0 turns LAWA off."""
    save_every_steps: int = 0
    """Also save a resume state after every this many updates. 0 saves only at the end of every
    epoch."""
    keep_resume: int = 2
    """The number of resume states to keep. The models of all epochs are kept."""
    loader_threads: int = 8
    """The number of threads that decode and augment, in this process or in each worker."""
    loader_workers: int = 0
    """The number of processes that load data. With 0 this process loads it. Batches are the same
    for any number."""

    # Fields that may differ between a run and its resumption, since they leave the values alone.
    changeable = frozenset(
        {
            "run_dir",
            "lawa_k",
            "save_every_steps",
            "keep_resume",
            "loader_threads",
            "loader_workers",
            "corrupt_budget",
            "bn",
        }
    )

    # Fields that --evaluate refuses, since its figures do not depend on them.
    no_effect_on_evaluation: ClassVar[frozenset[str]] = frozenset()

    def check(self) -> None:
        """Raises ConfigError for values that make no sense, whatever the task."""
        self.at_least(1, "epochs", "batch_size", "keep_resume")
        self.at_least(0, "lawa_k", "save_every_steps", "loader_threads", "loader_workers", "seed")

    def at_least(self, least: int, *names: str) -> None:
        """Raises ConfigError for fields that are less than `least`."""
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected >= {least}, found {getattr(self, name)}")

    def shares(self, *names: str) -> None:
        """Raises ConfigError for fields outside [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), found {getattr(self, name)}")

    def finite(self, *names: str) -> None:
        """Raises ConfigError for fields that are negative, infinite or no number."""
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number >= 0, found {getattr(self, name)}")

    def divides(self, accumulate: int) -> None:
        """Raises ConfigError for a batch that does not divide into so many parts."""
        if self.batch_size % accumulate:
            raise ConfigError(
                f"accumulate: batch_size {self.batch_size} does not divide by {accumulate}"
            )


@dataclasses.dataclass(frozen=True)
class ImageConfig(RunConfig):
    """Image classification with a ResNet. The defaults are the paper's ResNet-50 on ImageNet."""

    dataset: Literal["imagenet", "digits", "dummy"] = "imagenet"
    """imagenet is TFDS imagenet2012 or an image folder; digits are the 8x8 digits of scikit-learn;
    dummy is synthetic images of the real shapes."""
    data_dir: str = "data/imagenet"
    """For imagenet: a TFDS directory, or a folder with train/<class>/* and val/<class>/*."""
    image_size: int = 224
    """The pixels per side, for imagenet and dummy."""
    resize: int = 0
    """The pixels of the shorter side before the centre crop of evaluation. 0 means 256/224 of
    image_size."""
    shrink_on_load: bool = True
    """Decode JPEGs at a half, quarter or eighth of their size where a random crop still has enough
    pixels."""
    corrupt_budget: int = 20
    """The number of damaged images, each logged by name, that are replaced or left out. More of
    them are an error."""
    dummy_examples: int = 2048
    """The number of training images of the dummy data. An eighth as many are for validation."""
    dummy_classes: int = 1000
    """The number of classes of the dummy data."""
    label_noise: float = 0.0
    """The share of training labels that are random, for digits."""
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_digits"] = (
        "resnet50"
    )
    """One of torchvision's v1.5 architectures, or a small one with a CIFAR stem."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of activations. Parameters and statistics are always float32."""
    learning_rate: float = 0.1
    """The peak learning rate at base_batch_size. It is scaled linearly with the batch size."""
    base_batch_size: int = 256
    """The batch size for which learning_rate is given."""
    momentum: float = 0.9
    """The momentum of SGD."""
    weight_decay: float = 1e-4
    """The weight decay of every parameter. It is added to the gradient, as torch does."""
    warmup_epochs: int = 0
    """The number of epochs of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The schedule of the learning rate, stepped once per epoch."""
    label_smoothing: float = 0.0
    """The share of the target that is spread over all classes."""
    accumulate: int = 1
    """The number of parts of a batch over which gradients are accumulated."""
    bn: Literal["recalibrate", "average", "latest"] = "recalibrate"
    """The BatchNorm statistics of an average: recomputed on training data (as in the paper),
    averaged like weights, or those of the newest checkpoint."""
    bn_batches: BatchCount = 50
    """The number of training batches for recalibration. all (or 0) is a whole epoch, the full pass
    of the original."""
    bn_groups: int = 1
    """The number of parts of a batch that BatchNorm normalises separately. 1 normalises over the
    whole (global) batch. The number of devices does what the original does with one batch per
    GPU."""

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        super().check()
        self.shares("label_smoothing", "label_noise", "momentum")
        self.finite("learning_rate", "weight_decay")
        self.at_least(1, "image_size", "dummy_examples", "dummy_classes", "base_batch_size")
        self.at_least(1, "accumulate", "bn_groups")
        self.at_least(0, "bn_batches", "corrupt_budget", "resize")
        if 0 < self.resize < self.image_size:
            raise ConfigError(
                f"resize: expected >= image_size={self.image_size}, found {self.resize}"
            )
        self.divides(self.accumulate)
        if self.batch_size // self.accumulate % self.bn_groups:
            raise ConfigError(
                f"bn_groups: {self.batch_size // self.accumulate} samples a pass do not divide "
                f"into {self.bn_groups} groups"
            )


Config = TypeVar("Config", bound=RunConfig)


def from_file(path: str, kind: type[Config]) -> Config:
    """The ``config`` that a Python file the user names defines.

    Raises:
      ConfigError: no such file, an error in it, or no ``config`` of this kind.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config {path}: no such file; see configs/ for what there is")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config {path}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--config {path}: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, kind):
        raise ConfigError(
            f"--config {path}: expected a variable `config` of type {kind.__name__}, found "
            f"{type(config).__name__}"
        )
    return config


def from_json(values: dict[str, Any], kind: type[Config], source: str) -> Config:
    """A configuration from what a run stored.

    Raises:
      ConfigError: an unknown field, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ConfigError(
            f"{source}: unknown field {unknown[0]!r}; known: {', '.join(sorted(fields))}"
        )
    defaults = kind()
    for name, value in values.items():
        default = getattr(defaults, name)
        fits = isinstance(value, type(default)) or (
            isinstance(default, float) and isinstance(value, int)
        )
        if not fits or isinstance(value, bool) != isinstance(default, bool):
            raise ConfigError(
                f"{source}: field {name!r}: expected {type(default).__name__}, found {value!r}"
            )
    return kind(**values)


def to_json(config: RunConfig) -> dict[str, Any]:
    """The fields as JSON values."""
    return dataclasses.asdict(config)
