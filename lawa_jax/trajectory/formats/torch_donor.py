"""A copy of a ``torch.save`` file with other values in some of its tensors.

Everything else of the file, its pickle above all, is copied byte for byte: nothing in it is
interpreted, so that its own trainer finds what it wrote.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.errors import CorruptCheckpointError, SelectionError
from lawa_jax.trajectory.formats import torch_files
from lawa_jax.trajectory.formats.state_dict import find_tensors

# PyTorch's writer adds these itself.
_WRITTEN_ANYWAY = ("version", ".data/serialization_id")


def rewrite(
    donor: Path,
    target: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    wrapper: str | None = None,
    stubs: Iterable[str] = (),
) -> None:
    """Write `target`: the donor with these values, each rounded to the dtype it has there.

    Args:
      donor: a zip file of ``torch.save`` (torch 1.6 or later).
      target: the file; overwritten.
      arrays: by name in the donor's state dict, in its shapes.
      wrapper, stubs: as in `torch_files.read`.

    Raises:
      SelectionError: the donor is of the format before torch 1.6.
      CorruptCheckpointError: a tensor's bytes are not found in the archive.
    """
    torch = torch_files.import_torch()
    if not zipfile.is_zipfile(donor):
        raise SelectionError(
            f"--donor {donor}: saved in the format before torch 1.6, which cannot be copied in "
            "parts; save it again with a newer torch, where you trust it"
        )
    # Fake tensors know where in the archive their bytes are.
    with torch._subclasses.FakeTensorMode():
        content = torch_files.load(donor, stubs=stubs, mapped=False)
    is_tensor = lambda x: isinstance(x, torch.Tensor)  # noqa: E731
    tensors = find_tensors(content, is_tensor, str(donor), wrapper).entries
    by_offset: dict[int, list[str]] = {}
    for name in arrays:
        offset = getattr(tensors[name].untyped_storage(), "_checkpoint_offset", None)
        if offset is None:
            raise CorruptCheckpointError(f"{donor}: tensor {name!r} is not found in the archive")
        by_offset.setdefault(offset, []).append(name)
    reader = torch._C.PyTorchFileReader(str(donor))
    writer = torch._C.PyTorchFileWriter(str(target))
    for record in reader.get_all_records():
        if record in _WRITTEN_ANYWAY:
            continue
        data = bytearray(reader.get_record(record))
        for name in by_offset.pop(reader.get_record_offset(record), []):
            _put(torch, data, tensors[name], arrays[name])
        writer.write_record(record, bytes(data), len(data))
    writer.write_end_of_file()
    if by_offset:
        name = next(iter(by_offset.values()))[0]
        raise CorruptCheckpointError(f"{donor}: tensor {name!r} is not found in the archive")


def _put(torch: Any, data: bytearray, place: Any, values: np.ndarray) -> None:
    """Write values where a tensor lies in its storage."""
    storage = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
    tensor = torch.empty(0, dtype=place.dtype).set_(
        storage, place.storage_offset(), place.shape, place.stride()
    )
    tensor.copy_(torch_files.to_tensor(values))
