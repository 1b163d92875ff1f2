"""Images that TensorFlow Datasets prepared, read without TensorFlow (array_record files)."""

import re
from pathlib import Path
from typing import Any

from lawa_jax.errors import (
    CorruptDataError,
    DataNotFoundError,
    LawaError,
    MissingDependencyError,
    reason_of,
)

DATASET = "imagenet2012"
_INFO = "dataset_info.json"


def find_builder(data_dir: Path) -> Path | None:
    """The newest prepared version of ImageNet in `data_dir`; None if there is none.

    `data_dir` is a TFDS directory (``data_dir/imagenet2012/5.1.0``), a data set in it, or one of
    its versions.
    """
    if (data_dir / _INFO).is_file():
        return data_dir
    for folder in (data_dir / DATASET, data_dir):
        versions = [path.parent for path in folder.glob(f"*/{_INFO}") if _version(path.parent)]
        if versions:
            return max(versions, key=_version)
    return None


def _version(path: Path) -> tuple[int, ...]:
    """(5, 1, 0) for a folder named 5.1.0, () for any other."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", path.name)
    return tuple(int(part) for part in match.groups()) if match else ()


class TfdsImages:
    """One split of a prepared data set with the features ``image`` and ``label``.

    Args:
      directory: of a prepared version, which holds ``dataset_info.json``.
      split: its name, such as "train".

    Raises:
      MissingDependencyError: TFDS is not installed.
      DataNotFoundError: no such split or features, or files without random access.
      CorruptDataError: its description or its files are damaged.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.directory, self.split = str(directory), split
        builder, self._records = self._open()
        self.classes = tuple(builder.info.features["label"].names or ())
        if not self.classes:
            count = builder.info.features["label"].num_classes
            self.classes = tuple(str(label) for label in range(count))

    def _open(self) -> tuple[Any, Any]:
        try:
            import array_record.python.array_record_data_source  # noqa: F401
            import importlib_resources  # noqa: F401
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.directory} was prepared by TensorFlow Datasets, and reading it needs "
                f"{error.name}: pip install 'lawa-jax[tfds]' (TensorFlow itself is not needed)"
            ) from error
        try:
            return self._open_with(tfds)
        except LawaError:
            raise
        except Exception as error:  # TFDS, protobuf and array_record raise whatever they meet
            raise CorruptDataError(
                f"{self.directory}: split {self.split!r} cannot be opened ({reason_of(error)}); "
                f"copy it again, or prepare it again: tfds build {DATASET}"
            ) from error

    def _open_with(self, tfds: Any) -> tuple[Any, Any]:
        builder = tfds.builder_from_directory(self.directory)
        features, splits = builder.info.features, builder.info.splits
        if self.split not in splits or not {"image", "label"} <= set(features):
            raise DataNotFoundError(
                f"{self.directory}: expected the split {self.split!r} with the features image and "
                f"label, found the splits {sorted(splits)} with the features {sorted(features)}"
            )
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise DataNotFoundError(
                f"{self.directory}: expected array_record files, found {file_format}, which cannot "
                f"be read in any order. Prepare it again: tfds build {DATASET} "
                "--file_format=array_record"
            )
        records = builder.as_data_source(
            split=self.split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return builder, records

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind; a worker process opens its own.
        return {**self.__dict__, "_records": None}

    def __len__(self) -> int:
        return len(self._opened())

    def _opened(self) -> Any:
        if self._records is None:
            self._records = self._open()[1]
        return self._records

    def name(self, index: int) -> str:
        """The split's directory, the index, and the file name where the data set has one."""
        try:
            file_name = self._record(index).get("file_name", "")
        except CorruptDataError:
            file_name = ""
        where = file_name.decode() if isinstance(file_name, bytes) else str(file_name)
        return f"{self.directory} {self.split}[{index}] {where}".rstrip()

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of an image file, and its label.

        Raises:
          CorruptDataError: the record cannot be read.
        """
        record = self._record(index)
        return bytes(record["image"]), int(record["label"])

    def _record(self, index: int) -> dict[str, Any]:
        records = self._opened()
        try:
            record: dict[str, Any] = records[index]
        except Exception as error:  # the same
            raise CorruptDataError(f"the record cannot be read ({reason_of(error)})") from error
        # What array_record finds in a truncated file.
        if record.get("image") is None or record.get("label") is None:
            raise CorruptDataError("the record cannot be read (it is empty)")
        return record
