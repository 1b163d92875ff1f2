"""Data sets, from files to batches; batches are the same for any number of workers."""

from typing import Any

Batch = dict[str, Any]
"""Arrays by name, on the host or on devices; the first axis of each is the batch axis."""
