"""The ledger of an example set: its generations, append only, each sealed together with all before it.

The seal of a generation is a digest of its content, which names the seal before it, the first
the fingerprint of the run. So one that is lost, replaced or of another run breaks the chain, and
whatever rests on a seal rests on every generation up to it.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import DATA, generation_path
from streamfluence.store.digests import document_digest
from streamfluence.store.documents import canonical, differences, plain
from streamfluence.store.run_documents import create_document, read_document
from streamfluence.store.shapes import Document, refuse_partitions
from streamfluence.store.storage import Storage

_FILE = re.compile(r"\A[0-9]{6}\.json\Z")


def set_names(storage: Storage) -> list[str]:
    """Return the names of the sets that have a ledger, sorted."""
    return [name for name in storage.children(DATA)[0] if numbers(storage, name)]


def numbers(storage: Storage, name: str) -> list[int]:
    """Return the numbers of the generations that are there, sorted, sound or not."""
    found = chain(*storage.children(f"{DATA}/{name}"))  # a folder of such a name is a damaged one
    return sorted(int(file.removesuffix(".json")) for file in found if _FILE.match(file))


def generations(
    storage: Storage, name: str, manifest: Mapping[str, Any], fingerprint: str
) -> Iterator[Document]:
    """Yield the generations of a set, in order, each checked against those before it.

    Args:
        manifest: Of the run, which says how many checkpoints a partition has.

    Raises:
        DamageError: At the first that is damaged, missing, or not what follows there.
    """
    before, stop, partitions, measurement = fingerprint, 0, 0, None
    for expected, number in enumerate(numbers(storage, name)):
        path = generation_path(name, expected)
        if number != expected:
            raise DamageError(
                f"{storage.url}/{path} is missing, but {generation_path(name, number)} is there; {_PUT_BACK}"
            )
        content = read_document(storage, path, manifest)
        found = [content[key] for key in ("set", "generation", "before", "start")]
        if found != [name, number, before, stop] or content["measurement"] != (
            measurement or content["measurement"]
        ):
            raise DamageError(
                f"{storage.url}/{path} is of another run or set, or does not follow the generation before "
                f"it; {_PUT_BACK}"
            )
        partitions += -(-content["count"] // content["partition_examples"])
        refuse_partitions(content.where, partitions, manifest)
        yield content
        before, stop = document_digest(content), stop + content["count"]
        measurement = content["measurement"]


def begin_ledger(storage: Storage, name: str, fingerprint: str, content: Mapping[str, Any]) -> None:
    """Make a set of its first generation; the same again is no change.

    Args:
        content: ``measurement``, ``table``, ``count``, ``partition_examples``, ``identity``, ``code``.

    Raises:
        InputError: If the set began with another one.
        DamageError: If what it began with is damaged.
    """
    path = generation_path(name, 0)
    wanted = _numbered(name, 0, fingerprint, 0, content)
    if not storage.exists(path):
        create_document(storage, path, wanted)
        return
    if canonical(there := read_document(storage, path)) != canonical(wanted):
        what = "training set" if name == "train" else f"query set {name!r}"
        raise InputError(
            f"the {what} of {storage.url} was made from other data or another measurement "
            f"({differences(there, wanted, 3)}); restore it, give other queries another name, or use a new "
            f"run folder"
        )


def append_generation(
    storage: Storage,
    name: str,
    manifest: Mapping[str, Any],
    fingerprint: str,
    content: Mapping[str, Any],
) -> None:
    """Add a generation to a set that has begun.

    Args:
        content: As that of ``begin_ledger``.

    Raises:
        DamageError: If the ledger is damaged.
        InputError: If another generation was added meanwhile.
    """
    *_, last = generations(storage, name, manifest, fingerprint)
    number, start = last["generation"] + 1, last["start"] + last["count"]
    wanted = _numbered(name, number, document_digest(last), start, content)
    create_document(storage, generation_path(name, number), wanted)


def _numbered(
    name: str, number: int, before: str, start: int, content: Mapping[str, Any]
) -> dict[str, Any]:
    return {"set": name, "generation": number, "before": before, "start": start, **plain(content)}


_PUT_BACK = "put back what was there"
