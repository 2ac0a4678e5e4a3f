"""JSON documents that know when they were damaged, and how two of them differ.

A document is written as ``{"crc32c": "...", ...}``; the checksum covers every byte
after it, so a flipped bit, a truncation or an edit is found when it is read.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np

from streamfluence.errors import DamageError, InputError
from streamfluence.store.storage import DOCUMENT_BYTES

_DEEPEST = 64  # levels of nesting; every document of a run has fewer than ten
_LARGEST = 2**64
_HEAD = re.compile(rb'\A\{(?:\n  )?"crc32c": "([0-9a-f]{8})",')


def canonical(content: Any) -> bytes:
    """Return the one JSON text of ``content``: keys sorted, no spaces, ASCII.

    Raises:
        InputError: If it holds something JSON has no word for, e.g. a NaN or a date.
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"a value cannot be recorded in JSON: {error}") from error


def plain(value: Any) -> Any:
    """Return ``value`` as JSON types: numpy scalars and arrays unpacked, NaN and infinity as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def seal(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return the bytes of a document, its checksum first."""
    assert content and "crc32c" not in content
    canonical(content)
    body = json.dumps(content, indent=indent, allow_nan=False).encode()[1:]
    if len(body) > DOCUMENT_BYTES:
        raise InputError(
            f"a document of {len(body):,} bytes is larger than any of a run may be "
            f"({DOCUMENT_BYTES:,}); name fewer or larger files in the job"
        )
    start = b'{\n  "crc32c": "' if indent else b'{"crc32c": "'
    return start + b"%08x" % google_crc32c.value(body) + b'",' + body


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """Return the content of a document.

    Raises:
        DamageError: If it is not a sealed document or its checksum differs; names ``where``.
    """
    _check_length(data, where)
    head = _HEAD.match(data)
    if head is None:
        raise DamageError(f"{where} is not a document of a run ({len(data)} bytes); {_CHANGED}")
    body = data[head.end() :]
    if google_crc32c.value(body) != int(head[1], 16):
        raise DamageError(f"{where} differs from its checksum; {_CHANGED}")
    content: dict[str, Any] = parse(b"{" + body, where)
    return content


def parse(data: bytes, where: str) -> Any:
    """Return the value of a JSON text that somebody else may have written, within bounds.

    Raises:
        DamageError: If it is longer than a document may be, is no JSON of UTF-8, names a key
            twice, is nested too deeply, or holds a number that no document of a run has.
    """
    _check_length(data, where)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once_each, parse_constant=_no_number)
        _check_bounds(value)
    except RecursionError:
        raise DamageError(f"{where} is nested too deeply; {_CHANGED}") from None
    except ValueError as error:
        raise DamageError(f"{where} is no document of a run: {error}; {_CHANGED}") from error
    return value


def _check_length(data: bytes, where: str) -> None:
    if len(data) > DOCUMENT_BYTES:
        raise DamageError(
            f"{where} is longer than a document of a run may be ({DOCUMENT_BYTES:,} bytes); {_CHANGED}"
        )


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names a key twice")
    return found


def _no_number(token: str) -> None:
    raise ValueError(f"{token} is no number of JSON")


def _check_bounds(value: Any) -> None:
    """Raise ValueError for what no document needs, and what would trip whoever handles it."""
    layer = [value]
    for _ in range(_DEEPEST):
        nested: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                nested.extend(item.values())
            elif isinstance(item, list):
                nested.extend(item)
            elif isinstance(item, int) and abs(item) >= _LARGEST:
                raise ValueError("it holds a whole number of more than 64 bits")
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("it holds a number beyond all floats")
        layer = nested
        if not layer:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def is_sealed(data: bytes) -> bool:
    """Return whether a document begins with a checksum, right or wrong."""
    return _HEAD.match(data) is not None


def differences(old: Any, new: Any, limit: int = 8) -> str:
    """Return the dotted keys at which two documents differ, with the old and the new value."""
    found = list(_differences(json.loads(canonical(old)), json.loads(canonical(new)), ""))
    more = [f"and {len(found) - limit} more"] if len(found) > limit else []
    return "; ".join(found[:limit] + more)


_CHANGED = "it was truncated, damaged or edited after it was written"
_ABSENT = object()


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    elif old is _ABSENT or new is _ABSENT or canonical(old) != canonical(new):
        yield f"{key}: stored {_shown(old)}, asked {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = canonical(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
