"""Batches of any shape: mappings, lists and tuples, nested, whose leaves are arrays.

Every leaf has a leading example axis. A list of strings is a leaf too; other values
that are not arrays are passed through.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from streamfluence.errors import InputError

# The types a model can take as they are; torch has no arithmetic on wider unsigned ones.
_TORCH_KINDS = "biufc"
_WIDENED = {np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)}
_PLAIN = (str, bytes, int, float, list, tuple, type(None))


def map_batch(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return ``batch`` with ``function`` applied to every array; a mapping comes back as a dict."""
    if _is_array(batch):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_batch(function, value) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not _is_strings(batch):
        return _like(batch, [map_batch(function, value) for value in batch])
    return batch


def to_tensors(batch: Any, device: torch.device | str = "cpu") -> Any:
    """Return ``batch`` with its arrays as tensors on ``device``.

    uint16, uint32 and uint64 become int64, other byte orders the machine's; arrays
    that torch cannot hold (strings, dates) stay as they are.
    """
    return map_batch(lambda array: _tensor(array, device), batch)


def leaves(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(place, leaf)`` for every array and list of strings; a place reads ``/inputs/0``."""
    return (pair for pair in _walk(batch, "") if _is_array(pair[1]) or _is_strings(pair[1]))


def batch_length(batch: Any) -> int:
    """Return the number of examples of ``batch``.

    Raises:
        InputError: If it holds no array, or arrays that disagree.
    """
    lengths = {place: len(leaf) if np.ndim(leaf) else -1 for place, leaf in leaves(batch)}
    if not lengths:
        raise InputError(
            f"a batch must hold arrays with a leading example axis, not {batch!r:.200}"
        )
    if min(lengths.values()) < 0 or len(set(lengths.values())) > 1:
        listed = ", ".join(
            f"{place or 'batch'}: {n if n >= 0 else 'none'}" for place, n in lengths.items()
        )
        raise InputError(
            f"the arrays of a batch must have one number of examples, but have {listed}"
        )
    return next(iter(lengths.values()))


def input_digest(batch: Any, crc: int = 0) -> int:
    """Return the crc32c of all names, types, shapes and bytes of ``batch``, going on from ``crc``.

    The order of a mapping does not matter, and a tensor counts as the array it holds. Of a
    leaf that is neither array, string nor number only the type counts.
    """
    for place, leaf in sorted(_walk(batch, ""), key=lambda pair: pair[0]):
        crc = _digest_leaf(crc, place, leaf)
    return crc


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return examples ``start`` to ``stop`` of ``batch``; its arrays are views."""
    if _is_array(batch) or _is_strings(batch):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: slice_batch(value, start, stop) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return _like(batch, [slice_batch(value, start, stop) for value in batch])
    return batch


def concatenate(batches: Sequence[Any]) -> Any:
    """Return one batch of all examples of ``batches``, which have the same structure."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    if isinstance(first, np.ndarray):
        return np.concatenate(batches)
    if isinstance(first, Mapping):
        return {key: concatenate([batch[key] for batch in batches]) for key in first}
    if any(_is_strings(batch) for batch in batches):  # the first may be an empty list
        return [each for batch in batches for each in batch]
    if isinstance(first, list | tuple):
        return _like(first, [concatenate(parts) for parts in zip(*batches, strict=True)])
    return first


def _walk(batch: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield everything that is not a container, with its place."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _walk(value, f"{place}/{key}")
    elif isinstance(batch, list | tuple) and not _is_strings(batch):
        for index, value in enumerate(batch):
            yield from _walk(value, f"{place}/{index}")
    else:
        yield place, batch


def _digest_leaf(crc: int, place: str, leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        if leaf.dtype == torch.bfloat16:
            leaf, place = leaf.view(torch.int16), f"{place}:bfloat16"
        leaf = leaf.numpy()
    if not isinstance(leaf, np.ndarray):
        # Other objects print their address, which differs from process to process.
        shown = repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__
        return google_crc32c.extend(crc, f"{place}|{shown}".encode())
    crc = google_crc32c.extend(crc, f"{place}|{leaf.dtype.str}|{leaf.shape}".encode())
    return google_crc32c.extend(crc, np.ascontiguousarray(leaf).tobytes())


def _tensor(array: Any, device: torch.device | str) -> Any:
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in _TORCH_KINDS:
            return array
        wanted = np.dtype(np.int64) if array.dtype.newbyteorder("=") in _WIDENED else array.dtype
        array = np.ascontiguousarray(array, dtype=wanted.newbyteorder("="))
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    return array.to(device)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _is_strings(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )


def _like(template: Any, values: list) -> Any:
    """Return ``values`` in the type of ``template``: list, tuple or named tuple."""
    if hasattr(template, "_fields"):
        return type(template)(*values)
    return type(template)(values)
