"""Whether the data of a set is still what the run pinned.

Digesting a large data set is slow, so an identity is kept under the run by the cheap
signature (sizes and times) it was taken at; only a changed signature is digested again.
What is kept says of which table and signature it is, so that one of another set, or of
another time, is not taken for it.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streamfluence.data import open_reader
from streamfluence.data._together import together
from streamfluence.data.base import Reader
from streamfluence.errors import DamageError, InputError, StorageError
from streamfluence.layout import identity_path
from streamfluence.run.opened import OpenRun
from streamfluence.run.place import Place
from streamfluence.store.documents import seal, unseal
from streamfluence.store.storage import DOCUMENT_BYTES


def pinned_reader(run: OpenRun, example_set: str, place: Place | None = None) -> tuple[Reader, Any]:
    """Return the reader of a set whose data is what the run pinned, and its signature.

    Code that the set names is compared with its digests before it runs.

    Args:
        place: Where its data lies; as the run says by default.

    Raises:
        InputError: If the code or the data changed.
    """
    place, readers, signatures = place or run.place, [], []
    for number, pinned in enumerate(run.example_set(example_set).generations):
        table = place.table(example_set, number, pinned.table)
        reader = open_reader(table, place.root)
        reader.expect_code(pinned.code)
        found, signature = signed_identity(run.storage, reader, table)
        if found != pinned.identity:
            raise InputError(
                f"the data of {example_set!r} changed since {run.url} was made: "
                f"{_difference(pinned.identity, found)}; restore it, or use a new run folder"
            )
        readers.append(reader)
        signatures.append(signature)
    return together(readers), signatures if len(readers) > 1 else signatures[0]


def identity(
    storage: Any, reader: Reader, table: Mapping[str, Any], digest: bool = True
) -> dict[str, Any]:
    """Return the reader's identity, from the run's cache when its files are untouched since."""
    return signed_identity(storage, reader, table, digest)[0]


def signed_identity(
    storage: Any, reader: Reader, table: Mapping[str, Any], digest: bool = True
) -> tuple[dict[str, Any], Any]:
    """Return the reader's identity and the signature of its files that it belongs to.

    Args:
        digest: False pins the data by its signature only, for a run that is thrown away.

    Raises:
        InputError: If the files change while they are read.
    """
    signature = plain(reader.stat_signature())
    key = {"table": plain(table), "signature": signature}
    text = json.dumps([key["table"], signature], sort_keys=True)
    path = identity_path(hashlib.sha256(text.encode()).hexdigest())
    with suppress(FileNotFoundError, DamageError):
        kept = unseal(storage.read(path, DOCUMENT_BYTES), path)
        if {name: kept.get(name) for name in key} == key and isinstance(kept.get("identity"), dict):
            return kept["identity"], signature
    found = plain(reader.identity()) if digest else {"signature": text}
    if digest and plain(reader.stat_signature()) != signature:
        raise InputError(
            f"the data of {_named(key['table'])} changed while it was read; wait until nothing writes to it"
        )
    # Only a cache: in a run that cannot be written to, or where a damaged one lies, it is done without.
    with suppress(StorageError):
        storage.create(path, seal({**key, "identity": found}))
    return found, signature


def plain(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def _named(table: Mapping[str, Any]) -> str:
    return json.dumps({key: table[key] for key in table if key in ("path", "dataset")} or table)


def _difference(pinned: Any, now: Any) -> str:
    """Return one short line on the first thing that differs between two identities."""
    if isinstance(pinned, dict) and isinstance(now, dict):
        for key in sorted({*pinned, *now}):
            if pinned.get(key) != now.get(key):
                inner = _difference(pinned.get(key), now.get(key))
                return inner if isinstance(pinned.get(key), (dict, list)) else f"{key}: {inner}"
    if isinstance(pinned, list) and isinstance(now, list):
        for one, other in zip(pinned, now, strict=False):
            if one != other:
                return _difference(one, other)
        return f"{len(pinned)} entries then, {len(now)} now"
    return f"{pinned!r} then, {now!r} now"
