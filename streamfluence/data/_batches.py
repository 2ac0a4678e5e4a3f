"""Batches on their way from a reader to a device: tensors, digests. What a leaf is, `batches` says."""

import datetime
import enum
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from streamfluence import batches
from streamfluence.batches import children, leaves

__all__ = [
    "batch_length",
    "concatenate",
    "input_digest",
    "leaves",
    "map_batch",
    "select_batch",
    "slice_batch",
    "to_tensors",
]

# The types a model can take as they are; torch has no arithmetic on wider unsigned ones.
_TORCH_KINDS = "biufc"
_WIDENED = {np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)}
_DATES = (datetime.date, datetime.time, datetime.timedelta)
_NUMBERS = (int, float, complex, np.generic, enum.Enum, type(None))
_PLAIN = (str, bytes, list, tuple, pathlib.PurePath, *_DATES, *_NUMBERS)


def map_batch(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return ``batch`` with ``function`` applied to every array."""
    return batches.map_arrays(function, batch)


def to_tensors(batch: Any, device: torch.device | str = "cpu") -> Any:
    """Return ``batch`` with its arrays as tensors on ``device``.

    uint16, uint32 and uint64 become int64, other byte orders the machine's; arrays
    that torch cannot hold (strings, dates, objects) stay as they are.
    """
    return map_batch(lambda array: _tensor(array, device), batch)


def batch_length(batch: Any) -> int:
    """Return the number of examples of ``batch``.

    Raises:
        InputError: If it holds no leaf, or leaves that disagree.
    """
    return batches.example_count(batch)


def input_digest(batch: Any, crc: int = 0) -> int:
    """Return the crc32c of all names, types, shapes and bytes of ``batch``, going on from ``crc``.

    The order of a mapping does not matter, and a tensor counts as the array it holds. Of an
    object that is no array, string, number or date only the type counts.
    """
    for place, leaf in sorted(_walk(batch, ""), key=lambda pair: pair[0]):
        crc = _digest_leaf(crc, place, leaf)
    return crc


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return examples ``start`` to ``stop`` of ``batch``; its arrays are views."""
    return batches.cut(batch, start, stop)


def select_batch(batch: Any, examples: Sequence[int] | np.ndarray | Tensor) -> Any:
    """Return the given examples of ``batch``, in that order."""
    return batches.select(batch, examples)


def concatenate(parts: Sequence[Any]) -> Any:
    """Return one batch of all examples of ``parts``, which have the same structure."""
    return batches.join(parts)


def _walk(batch: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield everything that is not a container, with its place."""
    if isinstance(batch, np.ndarray) and batch.dtype.hasobject and not batch.dtype.names:
        yield f"{place}|{batch.shape}", None
        batch = batch.ravel().tolist()  # or the digest would be of addresses
    inside = None if _is_strings(batch) else children(batch)
    if inside is None:
        yield place, batch
    for key, value in inside or []:
        yield from _walk(value, f"{place}/{key}")


def _digest_leaf(crc: int, place: str, leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        if leaf.dtype == torch.bfloat16:
            leaf, place = leaf.view(torch.int16), f"{place}:bfloat16"
        leaf = leaf.numpy()
    if not isinstance(leaf, np.ndarray):
        # Other objects print their address, which differs from process to process.
        shown = repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__
        return int(google_crc32c.extend(crc, f"{place}|{shown}".encode("utf-8", "surrogatepass")))
    crc = google_crc32c.extend(crc, f"{place}|{leaf.dtype.str}|{leaf.shape}".encode())
    return int(google_crc32c.extend(crc, np.ascontiguousarray(leaf).tobytes()))


def _tensor(array: Any, device: torch.device | str) -> Any:
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in _TORCH_KINDS:
            return array
        wanted = np.dtype(np.int64) if array.dtype.newbyteorder("=") in _WIDENED else array.dtype
        array = np.ascontiguousarray(array, dtype=wanted.newbyteorder("="))
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    return array.to(device)


def _is_strings(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )
