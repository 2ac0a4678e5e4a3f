"""Shards that are to hold one data set: every one has the fields, types and row shapes of the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from streamfluence.data._npy import StoredArray, npy_header, npz_headers
from streamfluence.errors import InputError

Shard = dict[str, StoredArray]
EVERY_FIELD = ""  # the key of an .npz file in a layout; .npy files have their field's


def headers_of(files: Mapping[str, Path]) -> Shard:
    """Return the arrays of one shard, whose fields must have one length."""
    if EVERY_FIELD in files:
        shard = npz_headers(files[EVERY_FIELD])
    else:
        shard = {field: npy_header(path) for field, path in files.items()}
    for field, array in shard.items():
        if not array.shape:
            raise InputError(f"{array.path}: field {field!r} is one number without an example axis")
    if len({array.shape[0] for array in shard.values()}) > 1:
        lengths = ", ".join(f"{field}: {array.shape[0]:,}" for field, array in shard.items())
        files_named = " and ".join(str(path) for path in files.values())
        raise InputError(
            f"{files_named}: the fields differ in their number of examples ({lengths})"
        )
    return shard


def check_alike(shards: Sequence[Shard], id_field: str | None) -> None:
    """Raise InputError unless every shard has the fields, types and row shapes of the first.

    Ids that are strings may be longer in one shard than in another.
    """
    first = shards[0]
    origin = next(iter(first.values())).path
    for shard in shards[1:]:
        path = next(iter(shard.values())).path
        if sorted(shard) != sorted(first):
            raise InputError(
                f"{path} holds the fields {', '.join(sorted(shard))}, but {origin} holds "
                f"{', '.join(sorted(first))}; every shard must hold the same"
            )
        for field, array in shard.items():
            same = array.dtype == first[field].dtype or (
                field == id_field and {array.dtype.kind, first[field].dtype.kind} <= set("US")
            )
            if not same or array.shape[1:] != first[field].shape[1:]:
                raise InputError(
                    f"{array.path}: field {field!r} is {kind_of(array)}, but expected "
                    f"{kind_of(first[field])} as in {first[field].path}"
                )


def kind_of(array: StoredArray) -> str:
    shape = "x".join(map(str, array.shape[1:]))
    return (
        f"{array.dtype.name} with rows of shape {shape}" if shape else f"{array.dtype.name} scalars"
    )


def length_of(shard: Shard) -> int:
    return next(iter(shard.values())).shape[0]
