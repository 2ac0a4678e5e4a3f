"""Commit one partition: write an attempt, then create its receipt exclusively.

Writers do not coordinate. Each writes a complete attempt at a path of its own; the
receipt that is created first decides, and an attempt is removed only by its writer
before its receipt could exist, or by garbage collection after another one does.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamfluence import __version__
from streamfluence.errors import StorageError
from streamfluence.layout import Span, attempt_path, receipt_path
from streamfluence.store.attempt import Content, write_attempt
from streamfluence.store.documents import canonical, plain
from streamfluence.store.receipts import Receipt, read_receipt
from streamfluence.store.storage import Storage
from streamfluence.store.unique import unique_name


def commit_partition(
    storage: Storage,
    fingerprint: str,
    stage: str,
    partition: int,
    span: Span,
    content: Content,
    facts: Mapping[str, Any],
) -> Receipt:
    """Return the receipt of a partition: the own one, or that of whoever was first.

    Raises:
        StorageError: If the storage fails; nothing that was committed is touched.
        DamageError: If the partition has a damaged receipt.
    """
    if (done := read_receipt(storage, stage, partition, fingerprint)) is not None:
        return done
    facts = plain(facts)
    canonical(facts)  # refused now, not after the arrays were written
    attempt = unique_name()
    prefix = attempt_path(stage, partition, attempt)
    try:
        objects = write_attempt(storage, prefix, content)
    except BaseException as error:
        _remove(storage, prefix)
        winner = _finished_by_another(storage, stage, partition, fingerprint, error)
        if winner is None:
            raise
        return winner
    own = Receipt(
        stage, partition, span.start, span.stop, attempt, fingerprint, objects, facts, __version__
    )
    # From here on an error must leave the attempt alone: its receipt may exist.
    if storage.create(receipt_path(stage, partition), own.to_bytes()):
        return own
    _remove(storage, prefix)
    first = read_receipt(storage, stage, partition, fingerprint)
    if first is None:
        raise StorageError(
            f"the receipt of partition {partition} of stage {stage} in {storage.url} was there and is gone "
            "again (a repair at the same time?); run the same command again"
        )
    return first


def _finished_by_another(
    storage: Storage, stage: str, partition: int, fingerprint: str, error: BaseException
) -> Receipt | None:
    """Return the receipt that makes a failed storage no failure of this partition."""
    if isinstance(error, StorageError):
        with suppress(StorageError):
            return read_receipt(storage, stage, partition, fingerprint)
    return None


def _remove(storage: Storage, prefix: str) -> None:
    """Remove an attempt of one's own; what cannot be removed is garbage for later."""
    with suppress(StorageError):
        storage.remove_tree(prefix)
