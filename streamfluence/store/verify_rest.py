"""Check what no receipt describes: documents, published sets, and what is no file at all."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import (
    DATA,
    IDENTITIES,
    LISTING,
    MANIFEST,
    PARTS,
    PLACE,
    PUBLISHED,
    RECEIPTS,
    SCORES,
    SETS,
    SPEC,
    generation_path,
    is_document,
    listing_path,
    published_path,
    receipt_path,
    result_stage,
    score_path,
)
from streamfluence.store.documents import unseal
from streamfluence.store.ledger import generations
from streamfluence.store.receipts import StoredObject, committed, stages
from streamfluence.store.run_documents import fingerprint_of, read_document
from streamfluence.store.storage import DOCUMENT_BYTES, Storage, checked_path
from streamfluence.store.verify import Inspection, Problem, verify_objects

_FOLDERS = (RECEIPTS, PARTS, DATA, SCORES, SETS, IDENTITIES)


def refuse_doubtful_manifest(storage: Storage, fingerprint: str) -> None:
    """Raise DamageError where the receipts belong to another manifest than the one that is there.

    A receipt or two of another run are damaged receipts. Where most of them agree on another
    fingerprint, believing the manifest would throw a sound run away.
    """
    found: Counter[str] = Counter()
    for stage in stages(storage):
        paths = [receipt_path(stage, partition) for partition in committed(storage, stage)]
        for data in storage.read_many(paths):
            if isinstance(data, bytes):
                found[_fingerprint(data)] += 1
    own = found[fingerprint]
    total = sum(found.values())
    others = {name: count for name, count in found.items() if name not in ("", fingerprint)}
    name, most = max(others.items(), key=lambda item: item[1], default=("", 0))
    if most > own:
        raise DamageError(
            f"{storage.url}: {most:,} of {total:,} receipts belong to a run with the fingerprint {name}, "
            f"{own:,} to {fingerprint}, which {MANIFEST} describes; it is the manifest that is in doubt, so "
            "nothing was changed: put back the manifest of these receipts, for instance by removing this "
            "one and repeating `streamfluence run` with the job that made them"
        )


def verify_documents(storage: Storage, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the documents that are damaged: generations, place, scores and kept identities."""
    for name in _children(storage, DATA)[0]:
        yield from _ledger(storage, name, manifest)
    for path in _documents(storage):
        try:
            read_document(storage, path, manifest)
        except (DamageError, InputError) as error:  # or it went away meanwhile
            yield Problem("", -1, path, str(error))
    for name in _names(storage, IDENTITIES):
        path = f"{IDENTITIES}/{name}"
        try:
            unseal(storage.read(path, DOCUMENT_BYTES), f"{storage.url}/{path}")
        except (DamageError, FileNotFoundError) as error:
            yield Problem("", -1, path, str(error))


def verify_sets(storage: Storage, inspection: Inspection) -> Iterator[Problem]:
    """Yield what of the published sets is not as it was published."""
    folders, files = _children(storage, SETS)
    published = {name.removesuffix(".zarr") for name in folders if name.endswith(".zarr")}
    listed = {name.removesuffix(LISTING) for name in files if name.endswith(LISTING)}
    for name in sorted(published | listed):
        yield from _verify_set(storage, name, inspection)


def verify_rest(
    storage: Storage, manifest: Mapping[str, Any], inspection: Inspection, found: Iterable[Problem]
) -> list[Problem]:
    """Return what is wrong apart from stages; what ``found`` names already is not said again."""
    problems = [*verify_documents(storage, manifest), *verify_sets(storage, inspection)]
    known = {problem.object for problem in [*found, *problems]}
    return problems + [p for p in verify_kinds(storage) if p.object not in known]


def verify_kinds(storage: Storage) -> Iterator[Problem]:
    """Yield what in a run is neither a file nor a folder: links, pipes, devices."""
    for folder in _FOLDERS:
        try:
            for path, kind in storage.strange(folder):
                yield Problem("", -1, path, f"is {kind}, which a run has none of; take it away")
        except DamageError as error:
            yield Problem("", -1, folder, str(error))


def set_of(path: str) -> str | None:
    """Return the name of the published set that a path belongs to, if any."""
    top, _, rest = path.partition("/")
    name = rest.partition("/")[0]
    ending = PUBLISHED if name.endswith(PUBLISHED) else LISTING
    return name.removesuffix(ending) if top == SETS and name.endswith(ending) else None


def _verify_set(storage: Storage, name: str, inspection: Inspection) -> Iterator[Problem]:
    folder, listing = published_path(name), listing_path(name)
    try:
        content = unseal(storage.read(listing, DOCUMENT_BYTES), f"{storage.url}/{listing}")
        objects = _listed(content["objects"], f"{folder}/")
    except FileNotFoundError:
        yield Problem("", -1, listing, "is missing, so nothing says what was published")
        return
    except DamageError as error:
        yield Problem("", -1, listing, str(error))
        return
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        yield Problem("", -1, listing, f"is no listing of objects: {error}")
        return
    for path, what in verify_objects(storage, folder, objects, inspection):
        yield Problem("", -1, path, what)
    for path in _unlisted(storage, folder, objects):
        yield Problem("", -1, path, "was not published with the others")


def _listed(objects: Mapping[str, Any], prefix: str) -> dict[str, StoredObject]:
    """Return the objects of a listing by path inside the set."""
    found = {}
    for path, item in objects.items():
        length, checksum = item
        if type(length) is not int or type(checksum) is not int:
            raise ValueError(f"{path} has no length and checksum")
        found[checked_path(path.removeprefix(prefix))] = StoredObject(length, checksum)
    return found


def _unlisted(storage: Storage, folder: str, objects: Mapping[str, Any]) -> list[str]:
    try:
        there = [entry.path for entry in storage.entries(folder)]
    except DamageError:  # said already
        return []
    return [path for path in there if path.removeprefix(f"{folder}/") not in objects]


def _ledger(storage: Storage, name: str, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the first thing that is wrong with a ledger: what follows it says nothing."""
    sound = 0
    try:
        for _ in generations(storage, name, manifest, fingerprint_of(manifest)):
            sound += 1
    except (DamageError, InputError) as error:
        yield Problem("", -1, generation_path(name, sound), str(error))


def _documents(storage: Storage) -> Iterator[str]:
    if PLACE in _names(storage, ""):
        yield PLACE
    for label in _children(storage, SCORES)[0]:
        if SPEC in _names(storage, result_stage(label)):
            yield score_path(label)


def _names(storage: Storage, folder: str) -> list[str]:
    """Return the names of the documents in a folder; a folder with such a name is a damaged one."""
    folders, others = _children(storage, folder)
    names = [*(name for name in folders if name.endswith(".json")), *others]
    return [name for name in names if is_document(name)]


def _children(storage: Storage, folder: str) -> tuple[list[str], list[str]]:
    try:
        return storage.children(folder)
    except (DamageError, InputError):  # a link in a folder's place, which ``verify_kinds`` names
        return [], []


def _fingerprint(data: bytes) -> str:
    """Return the fingerprint that a sound receipt carries, else nothing."""
    try:
        return str(unseal(data, "").get("fingerprint", ""))
    except DamageError:
        return ""
