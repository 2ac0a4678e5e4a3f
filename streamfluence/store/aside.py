"""Receipts set aside, so that their partitions are missing and can be computed again.

What was set aside stays under ``receipts-damaged/``: it is the record from which a
repair that was killed is taken up by the next one.
"""

import re
from collections.abc import Iterator

from streamfluence.layout import receipt_path
from streamfluence.store.receipts import DEEPEST
from streamfluence.store.storage import Storage
from streamfluence.store.unique import unique_name

ASIDE = "receipts-damaged"
_FILE = re.compile(r"\A([0-9]{8}|[1-9][0-9]{8,17})\..+\.json\Z")


def set_aside(storage: Storage, stage: str, partition: int) -> bool:
    """Move a receipt out of the way; False if there was none."""
    try:
        storage.move(
            receipt_path(stage, partition),
            f"{ASIDE}/{stage}/{partition:08d}.{unique_name()}.json",
        )
    except FileNotFoundError:
        return False
    return True


def unfinished(
    storage: Storage, top: str = ASIDE, depth: int = DEEPEST
) -> Iterator[tuple[str, int]]:
    """Yield stage and partition of all that was set aside and has no receipt again."""
    folders, files = storage.children(top)
    stage = top.partition("/")[2]
    for partition in sorted({int(match[1]) for name in files if (match := _FILE.match(name))}):
        if stage and not storage.exists(receipt_path(stage, partition)):
            yield stage, partition
    for name in folders if depth else ():
        yield from unfinished(storage, f"{top}/{name}", depth - 1)
