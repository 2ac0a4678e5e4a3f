"""One run on disk or in an object store: its manifest, receipts and committed arrays.

A partition is written by one attempt at a path of its own and exists when its
receipt does. Any number of writers may work on the same partition without knowing
of each other: the first receipt wins, and every writer returns that one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import Span, receipt_path
from streamfluence.store import finalise as _finalise
from streamfluence.store.array_reader import ArrayReader, array_names, memory_for, open_array
from streamfluence.store.aside import set_aside, unfinished
from streamfluence.store.attempt import Content
from streamfluence.store.commit import commit_partition
from streamfluence.store.connect import open_storage
from streamfluence.store.garbage import Leftover, leftovers, remove_leftovers
from streamfluence.store.integrity import raise_damage, verified_json
from streamfluence.store.receipts import Receipt, committed, read_receipt, read_receipts, stages
from streamfluence.store.run_documents import (
    create_document,
    create_manifest,
    fingerprint_of,
    read_document,
    read_manifest,
)
from streamfluence.store.storage import Storage
from streamfluence.store.verify import Inspection, Problem, verify_stages
from streamfluence.store.verify_rest import refuse_doubtful_manifest, verify_rest

DAY_S = 86_400.0
ANYTHING = "anything"


class RunStore:
    """An open run; cheap to open, safe to use from several threads for different partitions.

    Attributes:
        url: Where it lies, as messages name it.
        manifest: What decides every number of the run, ``format_version`` included.
        fingerprint: sha256 of the manifest's canonical JSON; every receipt carries it.
        written_by: Version of the streamfluence that created the run.
    """

    def __init__(self, storage: Storage, manifest: dict[str, Any], written_by: str) -> None:
        self.storage, self.url = storage, storage.url
        self.manifest, self.written_by = manifest, written_by
        self.fingerprint = fingerprint_of(manifest)

    @classmethod
    def create(cls, url: Any, manifest: Mapping[str, Any]) -> Self:
        """Create a run, or open the one that is there if it has the same manifest.

        Args:
            url: Folder, ``s3://bucket/run`` or another URL that obstore knows, or an obstore store.
            manifest: JSON-able; ``format_version`` is added.

        Raises:
            InputError: If another run is there; the message names the keys that differ.
            StorageError: If the storage fails.
        """
        storage = open_storage(url)
        return cls(storage, *create_manifest(storage, manifest))

    @classmethod
    def open(cls, url: Any, holds: str | None = None) -> Self:
        """Open a run.

        Args:
            holds: What the manifest says it holds instead of a run; ``ANYTHING`` takes whatever it is.

        Raises:
            InputError: If there is none, it holds something else, or its format is not the one this
                version reads.
            DamageError: If its manifest is damaged.
            StorageError: If the storage fails.
        """
        storage = open_storage(url)
        opened = cls(storage, *read_manifest(storage))
        found = opened.manifest.get("holds")
        if holds not in (found, ANYTHING):
            raise InputError(
                f"{opened.url} holds {found or 'a run'} and not {holds or 'a run'}; check the path"
            )
        return opened

    def create_document(self, path: str, content: Mapping[str, Any]) -> bool:
        """Create a JSON document exclusively; False if the same one was already there.

        Raises:
            InputError: If a different one is there; the message names the keys that differ.
        """
        return create_document(self.storage, path, content)

    def read_document(self, path: str) -> dict[str, Any]:
        """Return a document; ``InputError`` if there is none, ``DamageError`` if it is damaged."""
        return read_document(self.storage, path, self.manifest)

    def has(self, path: str) -> bool:
        """Return whether a document exists, without reading its content."""
        return self.storage.exists(path)

    def stages(self) -> list[str]:
        """Return the stages of which at least one partition is committed, sorted."""
        return stages(self.storage)

    def committed(self, stage: str) -> list[int]:
        """Return the partitions of a stage that have a receipt, sound or not; reads only a listing."""
        return committed(self.storage, stage)

    def all_receipts(self, stage: str) -> dict[int, Receipt | DamageError]:
        """Return the receipts of a stage by partition, or what is wrong with one."""
        return dict(read_receipts(self.storage, stage, self.fingerprint))

    def receipts(self, stage: str) -> dict[int, Receipt]:
        """Return the receipts of a stage by partition.

        Raises:
            DamageError: If one is damaged or belongs to another run; names it.
        """
        found = self.all_receipts(stage)
        for receipt in found.values():
            if isinstance(receipt, DamageError):
                raise receipt
        return {
            partition: receipt
            for partition, receipt in found.items()
            if isinstance(receipt, Receipt)
        }

    def receipt(self, stage: str, partition: int) -> Receipt | None:
        """Return one partition's receipt, None if it is missing; ``DamageError`` as in ``receipts``."""
        return read_receipt(self.storage, stage, partition, self.fingerprint)

    def receipt_there(self, stage: str, partition: int) -> bool:
        """Return whether a partition has a receipt, without reading it."""
        return self.storage.exists(receipt_path(stage, partition))

    def missing(self, stage: str, n_partitions: int) -> list[int]:
        """Return the partitions below ``n_partitions`` that have no receipt; reads only a listing."""
        there = set(committed(self.storage, stage))
        return [partition for partition in range(n_partitions) if partition not in there]

    def commit(
        self,
        stage: str,
        partition: int,
        arrays: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        compressors: Mapping[str, str] | None = None,
        *,
        span: Span | None = None,
    ) -> Receipt:
        """Write a partition and return its receipt: the own one, or that of whoever was first.

        Args:
            arrays: By name; of any shape; bool, int, float or complex.
            attributes: Of the Zarr group, JSON-able.
            facts: For the receipt, JSON-able: identity of the input, counts, seconds.
            compressors: Lossless compressor of an array by name; none for those not named.
            span: Global rows of the partition; None takes ``start`` and ``stop`` from the facts.

        Raises:
            StorageError: If the storage fails; nothing that was committed is touched.
            DamageError: If the partition has a damaged receipt.
        """
        facts = facts or {}
        if span is None:
            span = Span(facts.get("start", 0), facts.get("stop", 0))
        content = Content(arrays, attributes or {}, compressors or {})
        return commit_partition(
            self.storage, self.fingerprint, stage, partition, span, content, facts
        )

    def read(
        self, receipt: Receipt, name: str, out: np.ndarray | None = None, rows: slice | None = None
    ) -> np.ndarray:
        """Return rows of an array, verified.

        Args:
            out: C-contiguous buffer of the result's shape and dtype; saves the page faults of a fresh one.
            rows: Of the partition, counted from its first; step 1. None returns all.

        Raises:
            DamageError: If anything differs from the receipt; names run, stage, partition and object.
            StorageError: If the storage fails.
        """
        with self.reader(receipt, name) as reader:
            start, stop, step = (rows or slice(None)).indices(reader.grid.rows)
            if step != 1:
                raise ValueError(f"rows must be consecutive, got {rows}")
            if out is None:
                shape = (max(stop - start, 0), *reader.shape[1:]) if reader.shape else ()
                out = memory_for(shape, reader.dtype, f"{self.url}/{receipt.path}/{reader.key}")
            return reader.read(start, max(start, stop), out)

    def read_all(self, receipt: Receipt) -> dict[str, np.ndarray]:
        """Return every array of a partition, verified."""
        return {name: self.read(receipt, name) for name in self.array_names(receipt)}

    def array_names(self, receipt: Receipt) -> list[str]:
        """Return the names of a partition's arrays, sorted."""
        return array_names(receipt)

    def read_blocks(
        self, receipt: Receipt, name: str, block_rows: int, out: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Yield consecutive blocks of rows, each verified before it is yielded.

        Args:
            block_rows: Rows of a block; the last may be shorter.
            out: Buffer of ``block_rows`` rows that every block is a view of; made once if not given.
        """
        with self.reader(receipt, name) as reader:
            yield from reader.blocks(block_rows, out)

    def reader(self, receipt: Receipt, name: str) -> ArrayReader:
        """Return an open array whose ``read(start, stop, out)`` fills buffers of the caller's."""
        return open_array(self.storage, receipt, name)

    def read_attributes(self, receipt: Receipt) -> dict[str, Any]:
        """Return the attributes of a partition's group, verified."""
        attributes = verified_json(self.storage, receipt, "zarr.json").get("attributes")
        if not isinstance(attributes, dict):
            raise_damage(self.storage, receipt, "zarr.json", "it has no attributes")
        return attributes

    def verify(
        self,
        stages: Iterable[str] | None = None,
        fraction: float = 1.0,
        seed: int = 0,
        checked: Callable[[str, int], None] = lambda path, length: None,
        there: Callable[[str, int], None] = lambda path, length: None,
    ) -> list[Problem]:
        """Return everything that differs from the receipts, without stopping at the first.

        Args:
            stages: None for all, and with them documents, published sets, and what is no file.
            fraction: Share of objects whose bytes are read.
            seed: Which share; so many in a row as the share goes into one read everything.
            checked: Called with path and length after each of them.
            there: Called with path and length of every object, read or not.
        """
        inspection = Inspection(fraction, seed, there, checked)
        problems = [*verify_stages(self.storage, stages, self.fingerprint, inspection)]
        if stages is None:
            problems += verify_rest(self.storage, self.manifest, inspection, problems)
        return problems

    def refuse_doubtful_manifest(self) -> None:
        """Raise DamageError where most receipts belong to another manifest than the one there."""
        refuse_doubtful_manifest(self.storage, self.fingerprint)

    def discard(self, stage: str, partition: int) -> bool:
        """Set a receipt aside, so that the partition is missing and can be computed again.

        Returns:
            False if there was none. The receipt is kept under ``receipts-damaged/``.
        """
        return set_aside(self.storage, stage, partition)

    def unfinished(self) -> list[tuple[str, int]]:
        """Return stage and partition of what was set aside and has not been computed again."""
        return sorted(unfinished(self.storage))

    def leftovers(self, older_than_s: float = DAY_S) -> list[Leftover]:
        """Return what no receipt names: lost or unfinished attempts and temporary files. Not damage."""
        return list(leftovers(self.storage, self.fingerprint, older_than_s))

    def collect_garbage(self, older_than_s: float = DAY_S) -> list[Leftover]:
        """Delete the leftovers that are nobody's and return them.

        An attempt goes only when another one is committed; a temporary file when it is
        older than ``older_than_s`` seconds.
        """
        return remove_leftovers(self.storage, self.leftovers(older_than_s))

    def finalise(
        self,
        set_name: str,
        n_checkpoints: int,
        n_partitions: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Build ``sets/<set_name>.zarr`` from committed partitions; see the module ``finalise``."""
        attributes = {"fingerprint": self.fingerprint, **(attributes or {})}
        return _finalise.finalise(
            self.storage, self.fingerprint, set_name, n_checkpoints, n_partitions, attributes
        )
