"""Read what a receipt promises, and say what is damaged when it is not there.

A missing object is damage only while the run itself can still be seen: when its
manifest has gone too, the storage is what failed.
"""

import zlib
from typing import NoReturn

from streamfluence.errors import DamageError, StorageError
from streamfluence.layout import MANIFEST
from streamfluence.store.receipts import Receipt, StoredObject
from streamfluence.store.storage import ObjectReader, Storage


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


def verified_bytes(storage: Storage, receipt: Receipt, key: str) -> bytes:
    """Return a whole object, compared with the receipt in length and checksum."""
    expected = promised(storage, receipt, key)
    try:
        data = storage.read(f"{receipt.path}/{key}")
    except FileNotFoundError:
        raise_missing(storage, receipt, key)
    if len(data) != expected.length:
        raise_length(storage, receipt, key, len(data))
    if zlib.crc32(data) != expected.crc32:
        raise_checksum(storage, receipt, key)
    return data


def raise_missing(storage: Storage, receipt: Receipt, key: str) -> NoReturn:
    """Raise for an object that is not there."""
    try:
        storage.read(MANIFEST)
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
