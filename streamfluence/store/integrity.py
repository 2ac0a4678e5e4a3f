"""Read what a receipt promises, and say what is damaged when it is not there.

A missing object is damage only while the run itself can still be seen: when its
manifest has gone too, the storage is what failed.
"""

import zlib
from typing import Any, NoReturn

from streamfluence.errors import DamageError, StorageError
from streamfluence.layout import MANIFEST
from streamfluence.store.documents import parse
from streamfluence.store.receipts import Receipt, StoredObject
from streamfluence.store.storage import DOCUMENT_BYTES, ObjectReader, Storage

_PIECE_BYTES = 4 << 20


def promised(storage: Storage, receipt: Receipt, key: str) -> StoredObject:
    """Return what the receipt says of an object; ``DamageError`` if it has none of that name."""
    if key not in receipt.objects:
        raise_damage(storage, receipt, key, "its receipt does not list it")
    return receipt.objects[key]


def open_object(storage: Storage, receipt: Receipt, key: str) -> ObjectReader:
    """Open an object that is there and as long as the receipt says, or raise ``DamageError``."""
    expected = promised(storage, receipt, key)
    try:
        reader = storage.open(f"{receipt.path}/{key}")
    except FileNotFoundError:
        raise_missing(storage, receipt, key)
    if reader.size != expected.length:
        reader.close()
        raise_length(storage, receipt, key, reader.size)
    return reader


def verified_bytes(
    storage: Storage, receipt: Receipt, key: str, limit: int = DOCUMENT_BYTES
) -> bytes:
    """Return a whole object, compared with the receipt in length and checksum.

    Args:
        limit: More bytes than any such object of a run has; longer ones are not read.
    """
    expected = promised(storage, receipt, key)
    if expected.length > limit:
        what = f"its receipt says {expected.length:,} bytes, but it can have at most {limit:,}"
        raise_damage(storage, receipt, key, what)
    try:
        data = storage.read(f"{receipt.path}/{key}", expected.length)
    except FileNotFoundError:
        raise_missing(storage, receipt, key)
    if len(data) != expected.length:
        raise_length(storage, receipt, key, len(data))
    if zlib.crc32(data) != expected.crc32:
        raise_checksum(storage, receipt, key)
    return data


def verified_json(storage: Storage, receipt: Receipt, key: str) -> dict[str, Any]:
    """Return a ``zarr.json`` of an attempt, compared with the receipt."""
    data = verified_bytes(storage, receipt, key)
    found = parse(data, f"{storage.url}/{receipt.path}/{key}")
    if not isinstance(found, dict):
        raise_damage(storage, receipt, key, "it does not describe an array or a group")
    return found


def checksum(reader: ObjectReader, length: int) -> int:
    """Return the CRC-32 of an open object, read in pieces."""
    found, buffer = 0, bytearray(min(_PIECE_BYTES, length))
    for offset in range(0, length, _PIECE_BYTES):
        got = reader.read_into(offset, buffer)
        found = zlib.crc32(memoryview(buffer)[:got], found)
    return found


def raise_missing(storage: Storage, receipt: Receipt, key: str) -> NoReturn:
    """Raise for an object that is not there."""
    try:
        storage.read(MANIFEST, DOCUMENT_BYTES)
    except FileNotFoundError:
        raise StorageError(
            f"the run {storage.url} has vanished (no {MANIFEST} any more); check the mount, "
            "then run the same command again"
        ) from None
    raise_damage(storage, receipt, key, "it is missing")


def raise_length(storage: Storage, receipt: Receipt, key: str, length: int) -> NoReturn:
    """Raise for an object that is too short or too long."""
    expected = receipt.objects[key].length
    raise_damage(storage, receipt, key, f"it has {length:,} bytes, its receipt says {expected:,}")


def raise_checksum(storage: Storage, receipt: Receipt, key: str) -> NoReturn:
    """Raise for an object whose content is not what was committed."""
    raise_damage(
        storage,
        receipt,
        key,
        "its bytes differ from the checksum in its receipt (changed, or another object's)",
    )


def raise_damage(storage: Storage, receipt: Receipt, key: str, what: str) -> NoReturn:
    """Raise ``DamageError`` with the place, what is wrong, and what repairs it."""
    raise DamageError(
        f"{storage.url}: stage {receipt.stage}, partition {receipt.partition}, object {key}: {what}; "
        f"`streamfluence repair {storage.url}` computes the partition again"
    )
