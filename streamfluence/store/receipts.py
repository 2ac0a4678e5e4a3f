"""Receipts: the only truth about which partitions exist, and what their bytes are.

A receipt names one attempt and holds length and checksum of every object in it,
so a reader notices an object that is missing, cut, changed, or that belongs to
another partition, which no checksum inside the object can tell.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import RECEIPTS, Span, attempt_path, receipt_path
from streamfluence.store.documents import plain, seal, unseal
from streamfluence.store.storage import DOCUMENT_BYTES, Storage, checked_path

_FILE = re.compile(r"\A([0-9]{8}|[1-9][0-9]{8,17})\.json\Z")  # as ``receipt_path`` writes it
_ATTEMPT = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_BLOCKS = re.compile(r"\A(?:[0-9a-f]{8})*\Z")
DEEPEST = 8  # folders of a stage's name; a run has three
_LARGEST = 2**53  # bytes and rows; every JSON reader tells such numbers apart


class StoredObject(NamedTuple):
    """Length and checksum of one object.

    Attributes:
        crc32: zlib's CRC-32 of all its bytes. Not crc32c: every Zarr object ends in its own
            crc32c, and the crc32c of such bytes is one constant, whatever they are.
        blocks: crc32c of each inner chunk, 8 hex digits each, where an object is plain inner
            chunks one after the other; empty otherwise. With it a part of the object can be
            read and still be known to be the right one.
    """

    length: int
    crc32: int
    blocks: str = ""


class Facts(dict[str, Any]):
    """What a stage recorded of a partition; asking for what it did not record is damage."""

    def __missing__(self, key: str) -> Any:
        raise DamageError(
            f"a receipt does not say {key!r}, which every receipt of its stage says; {_REPAIR}"
        )


@dataclass(frozen=True)
class Receipt:
    """What one committed partition consists of.

    Attributes:
        start, stop: Global rows of the partition; both 0 where rows have no meaning.
        attempt: Name of the attempt that won.
        fingerprint: Of the run's manifest.
        objects: By path inside the attempt.
        facts: What the stage recorded: identity of the input, non-finite counts, seconds, ...
        version: Of the streamfluence that wrote it.
    """

    stage: str
    partition: int
    start: int
    stop: int
    attempt: str
    fingerprint: str
    objects: Mapping[str, StoredObject]
    facts: Mapping[str, Any] = field(default_factory=Facts)
    version: str = ""

    @property
    def span(self) -> Span:
        """Global rows of the partition."""
        return Span(self.start, self.stop)

    @property
    def path(self) -> str:
        """Folder of the attempt in the run."""
        return attempt_path(self.stage, self.partition, self.attempt)

    @property
    def nbytes(self) -> int:
        """Bytes of all objects."""
        return sum(item.length for item in self.objects.values())

    def to_bytes(self) -> bytes:
        """Return the document that ``parse_receipt`` reads."""
        objects = {
            name: [item.length, item.crc32, item.blocks]
            if item.blocks
            else [item.length, item.crc32]
            for name, item in self.objects.items()
        }
        return seal({**vars(self), "objects": objects, "facts": plain(self.facts)})


def parse_receipt(data: bytes, stage: str, partition: int, fingerprint: str, url: str) -> Receipt:
    """Return the receipt in ``data``.

    Raises:
        DamageError: If it is damaged, belongs to another run, stage or partition, or names
            paths outside its attempt.
    """
    where = f"receipt {url}/{receipt_path(stage, partition)}"
    try:
        receipt = _from_content(unseal(data, where))
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise DamageError(f"{where} is malformed ({error}); {_REPAIR}") from error
    except DamageError as error:
        raise DamageError(f"{error}; {_REPAIR}") from error
    if receipt.fingerprint != fingerprint:
        raise DamageError(
            f"{where} belongs to another run: its fingerprint is {receipt.fingerprint[:12]}, this run's is "
            f"{fingerprint[:12]}; {_REPAIR}"
        )
    if (receipt.stage, receipt.partition) != (stage, partition):
        raise DamageError(
            f"{where} belongs to stage {receipt.stage}, partition {receipt.partition}; {_REPAIR}"
        )
    return receipt


def read_receipt(storage: Storage, stage: str, partition: int, fingerprint: str) -> Receipt | None:
    """Return one receipt, None if the partition is missing; raises like ``parse_receipt``."""
    try:
        data = storage.read(receipt_path(stage, partition), DOCUMENT_BYTES)
    except FileNotFoundError:
        return None
    return parse_receipt(data, stage, partition, fingerprint, storage.url)


def read_receipts(
    storage: Storage, stage: str, fingerprint: str
) -> Iterator[tuple[int, Receipt | DamageError]]:
    """Yield every partition of a stage that has a receipt, with the receipt or what is wrong with it."""
    partitions = committed(storage, stage)
    contents = storage.read_many(receipt_path(stage, partition) for partition in partitions)
    for partition, data in zip(partitions, contents, strict=True):
        if data is None:
            continue
        if isinstance(data, DamageError):
            yield partition, data
            continue
        try:
            yield partition, parse_receipt(data, stage, partition, fingerprint, storage.url)
        except DamageError as error:
            yield partition, error


def committed(storage: Storage, stage: str) -> list[int]:
    """Return the partitions of a stage that have a receipt, without reading any."""
    folders, files = storage.children(f"{RECEIPTS}/{checked_path(stage)}")
    names = [*folders, *files]  # a folder with the name of a receipt is a damaged one
    return sorted(int(name.removesuffix(".json")) for name in names if _FILE.match(name))


def stages(storage: Storage, top: str = RECEIPTS, depth: int = DEEPEST) -> list[str]:
    """Return the stages that have at least one receipt, sorted."""
    folders, files = storage.children(top)
    own = [top.partition("/")[2]] if any(map(_FILE.match, [*folders, *files])) else []
    below = [name for name in folders if depth and not _FILE.match(name) and "\\" not in name]
    return own + [s for name in below for s in stages(storage, f"{top}/{name}", depth - 1)]


def _from_content(content: dict[str, Any]) -> Receipt:
    """Return the receipt of a document; ValueError and its like if anything is not what it must be."""
    objects = {name: _object(name, item) for name, item in content.pop("objects").items()}
    facts = Facts(content.pop("facts", {}).items())
    receipt = Receipt(objects=objects, facts=facts, **content)
    for name in ("stage", "attempt", "fingerprint", "version"):
        if not isinstance(getattr(receipt, name), str):
            raise ValueError(f"{name} is no text")
    if not _ATTEMPT.match(receipt.attempt):
        raise ValueError(f"{receipt.attempt[:60]!r} is no name of an attempt")
    _count("partition", receipt.partition, 2**63)  # a number made of a digest may be one
    for name in ("start", "stop"):
        _count(name, getattr(receipt, name))
    if receipt.start > receipt.stop:
        raise ValueError(f"rows {receipt.start} to {receipt.stop}")
    for name in facts.keys() & _COUNTED:
        _count(name, facts[name])
    for name, sum_of_rows in _sums(facts.get("stored", {})).items():
        if not isinstance(sum_of_rows, int | float) or isinstance(sum_of_rows, bool):
            raise ValueError(f"{name} is {sum_of_rows!r}, not a sum")
    seconds = facts.get("seconds", 0)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
        raise ValueError(f"seconds is {seconds!r}")
    return receipt


def _object(name: str, item: Any) -> StoredObject:
    checked_path(name)
    found = StoredObject(*item) if isinstance(item, list) else None
    if found is None or not isinstance(found.blocks, str) or not _BLOCKS.match(found.blocks):
        raise ValueError(f"object {name!r} is not length, checksum and blocks")
    _count(f"length of {name!r}", found.length)
    _count(f"checksum of {name!r}", found.crc32, 2**32)
    return found


def _sums(stored: Any) -> dict[str, Any]:
    """Return what was measured of the codec: nothing, or all that is added up."""
    if not isinstance(stored, dict) or (stored and not set(stored) >= _MEASURED):
        raise ValueError(f"stored is {str(stored)[:60]}, not {', '.join(sorted(_MEASURED))}")
    return stored


def _count(name: str, value: Any, below: int = _LARGEST) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ValueError(f"{name} is {value!r}, not a count")


_COUNTED = frozenset({"non_finite", "examples", "invalid", "one_by_one"})  # facts that are added up
_MEASURED = frozenset({"rows", "error", "kept"})  # of a codec, see ``shares``
_REPAIR = "`streamfluence repair` sets it aside and computes the partition again"
