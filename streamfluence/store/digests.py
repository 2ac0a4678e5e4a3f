"""Digests of what is stored, for everything that rests on it.

A digest is of content, never of an attempt's name: a partition that is computed again
bit for bit, as a repair does, leaves valid what rests on it. The metadata of Zarr is left
out, because another version of it may say the same in other words.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from streamfluence.store.documents import canonical
from streamfluence.store.receipts import Receipt

_METADATA = "zarr.json"


def content_digest(receipts: Iterable[Receipt]) -> str:
    """Return a digest of what partitions hold: their places, and every object's length and checksum."""
    return document_digest([_content(receipt) for receipt in receipts])


def document_digest(content: Any) -> str:
    """Return a digest of a document, whatever the order of its keys."""
    return sha256(canonical(content)).hexdigest()[:32]


def _content(receipt: Receipt) -> list[Any]:
    objects = {
        name: [item.length, item.crc32]
        for name, item in receipt.objects.items()
        if name.rpartition("/")[2] != _METADATA
    }
    return [receipt.stage, receipt.partition, receipt.start, receipt.stop, objects]
