"""Whether the examples of a partition are those that it was computed from before.

A receipt carries a digest of every byte that a partition was computed from. It is the same
at every checkpoint, and the same when a partition is computed again.
"""

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import receipt_path
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.store.aside import ASIDE
from streamfluence.store.receipts import parse_receipt
from streamfluence.store.storage import DOCUMENT_BYTES


def refuse_other_input(rows: StoredRows, partition: int, digest: int) -> None:
    """Raise InputError if a partition was computed from other examples before.

    Args:
        digest: Of what it was computed from now.
    """
    for where, before in _before(rows, partition).items():
        if before != digest:
            raise InputError(
                f"the data of {rows.example_set!r} gives other examples for partition {partition} than those "
                f"that {rows.run.url}/{where} was made from; restore the data, or use a new run folder"
            )


def _before(rows: StoredRows, partition: int) -> dict[str, int]:
    """Return the digests on record, by the path of the receipt that has each."""
    run, places = rows.run, []
    for other in stored_rows(run, rows.example_set):
        stage = other.stage
        if other != rows:
            places.append((stage, receipt_path(stage, partition)))
        aside = f"{ASIDE}/{stage}"
        names = run.storage.children(aside)[1]
        places += [(stage, f"{aside}/{n}") for n in names if n.startswith(f"{partition:08d}.")]
    seal = rows.examples.partition_seals[partition]
    digests = {path: _digest(run, path, stage, partition, seal) for stage, path in places}
    return {path: digest for path, digest in digests.items() if digest is not None}


def _digest(run: OpenRun, path: str, stage: str, partition: int, seal: str) -> int | None:
    """Return the digest in a receipt; None if it is damaged, gone, or of another run or set."""
    try:
        data = run.storage.read(path, DOCUMENT_BYTES)
        receipt = parse_receipt(data, stage, partition, run.fingerprint, run.url)
    except (DamageError, FileNotFoundError):
        return None
    digest = receipt.facts.get("input_crc32c")
    return digest if isinstance(digest, int) and receipt.facts.get("set") == seal else None
