"""Configurations: frozen dataclasses, at once command line, config file and JSON."""

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
    """What every training run has."""

    run_dir: str = ""
    """Where the run is kept; runs/<name of the configuration>-seed<seed> by default."""
    seed: int = 0
    """Of initialisation, data order, augmentation and dropout."""
    epochs: int = 90
    """Train up to this epoch."""
    batch_size: int = 256
    """Samples an update sees, over all devices."""
    lawa_k: int = 5
    """Average this many of the latest epoch checkpoints; 0 turns LAWA off."""
    save_every_steps: int = 0
    """Also save a resume state every so many updates; 0: only at the end of every epoch."""
    keep_resume: int = 2
    """Resume states kept (models of all epochs are kept)."""
    loader_threads: int = 8
    """Threads that decode and augment, in this process or in each worker."""
    loader_workers: int = 0
    """Processes that load; 0: this one does. Batches are the same for any number."""

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
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("lawa_k", 0),
            ("save_every_steps", 0),
            ("keep_resume", 1),
            ("loader_threads", 0),
            ("loader_workers", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected >= {least}, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class ImageConfig(RunConfig):
    """Image classification by a ResNet; the defaults are the paper's ResNet-50 on ImageNet."""

    dataset: Literal["imagenet", "digits", "dummy"] = "imagenet"
    """imagenet: TFDS imagenet2012 or an image folder; digits: 8x8 digits of scikit-learn; dummy:
    synthetic images of the real shapes."""
    data_dir: str = "data/imagenet"
    """For imagenet: a TFDS directory, or a folder with train/<class>/* and val/<class>/*."""
    image_size: int = 224
    """Pixels a side, for imagenet and dummy."""
    resize: int = 0
    """Pixels of the shorter side before evaluation's centre crop; 0: 256/224 of image_size."""
    shrink_on_load: bool = True
    """Decode JPEGs at a half, quarter or eighth where a random crop leaves as many pixels."""
    corrupt_budget: int = 20
    """Damaged images, each logged by name, that are replaced or left out before it is an error."""
    dummy_examples: int = 2048
    """Training images of the dummy data; an eighth as many are for validation."""
    dummy_classes: int = 1000
    """Classes of the dummy data."""
    label_noise: float = 0.0
    """Share of random training labels, for digits."""
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet_digits"] = (
        "resnet50"
    )
    """torchvision's v1.5 architectures, or a small one with a CIFAR stem."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters and statistics are always float32."""
    learning_rate: float = 0.1
    """Peak learning rate at base_batch_size; scaled linearly with the batch size."""
    base_batch_size: int = 256
    """Batch size that learning_rate is for."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of every parameter, added to the gradient as torch does."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate, stepped once an epoch."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    accumulate: int = 1
    """Gradients are accumulated over this many parts of a batch."""
    bn: Literal["recalibrate", "average", "latest"] = "recalibrate"
    """BatchNorm statistics after averaging: recomputed on training data (as the paper), averaged
    like weights, or the newest checkpoint's."""
    bn_batches: BatchCount = 50
    """Training batches for recalibration; all (or 0): a whole epoch, the original's full pass."""
    bn_groups: int = 1
    """Parts of a batch that BatchNorm normalises apart: 1 for the whole (global) batch; the number
    of devices for what the original's one batch per GPU does."""

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        super().check()
        for name, low, high in (
            ("label_smoothing", 0.0, 1.0),
            ("label_noise", 0.0, 1.0),
            ("momentum", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) < high:
                raise ConfigError(
                    f"{name}: expected in [{low}, {high}), found {getattr(self, name)}"
                )
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number >= 0, found {getattr(self, name)}")
        for name in (
            "image_size",
            "dummy_examples",
            "dummy_classes",
            "base_batch_size",
            "accumulate",
            "bn_groups",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected >= 1, found {getattr(self, name)}")
        for name in ("bn_batches", "corrupt_budget", "resize"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected >= 0, found {getattr(self, name)}")
        if 0 < self.resize < self.image_size:
            raise ConfigError(
                f"resize: expected >= image_size={self.image_size}, found {self.resize}"
            )
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate: batch_size {self.batch_size} does not divide by {self.accumulate}"
            )
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
