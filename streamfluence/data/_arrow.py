"""Columns of Arrow tables as batches hold them: arrays, lists of strings, mappings of such.

A value that is missing has no number that would be true, so it is refused with its row.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from streamfluence.batches import ListOfExamples
from streamfluence.data._wanted import wanted
from streamfluence.errors import InputError

pa, compute = wanted("pyarrow", "parquet"), wanted("pyarrow.compute", "parquet")
types = pa.types

_TEXTS = ("string", "large_string", "string_view")
_NUMBERS = (types.is_boolean, types.is_integer, types.is_floating)
_TIMES = (types.is_date, types.is_timestamp, types.is_duration)
_TARGETS = ("labels", "label")  # of which padding is -100, that no loss counts


def batch_of(
    columns: Mapping[str, Any], rows: np.ndarray, like: Mapping[str, Any], length: int | None
) -> dict[str, Any]:
    """Return columns as a batch: a mapping from name to values, the examples first.

    Args:
        columns: Arrow's chunked arrays by name.
        rows: The number of each row in the data set, for messages.
        like: A batch of one example, whose shapes all others must have; may be empty.
        length: To which flat lists of numbers are padded or cut; None leaves them as they are. Padded
            ``input_ids`` without an ``attention_mask`` get one.

    Raises:
        InputError: If a value is missing, a list is longer than another, or a type has no array.
    """
    batch = {}
    for name, column in columns.items():
        where = f"column {name!r}"
        if length is not None and is_list_of_numbers(column.type):
            batch[name] = _padded(column, where, rows, length, -100 if name in _TARGETS else 0)
        else:
            batch[name] = values_of(column, where, rows, like.get(name))
    tokens = columns.get("input_ids")
    if length and tokens is not None and is_list_of_numbers(tokens.type):
        reached = np.arange(length) < _lengths(_decoded(tokens))[:, None]
        batch.setdefault("attention_mask", reached.astype(np.int64))
    return batch


def values_of(column: Any, where: str, rows: np.ndarray, like: Any = None) -> Any:
    """Return the values of a column: an array, a list of strings or bytes, or a mapping of such."""
    _refuse_missing(column, where, rows)
    kind = plain(column.type)
    if is_text(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return _listed(column, where, rows)
    if any(is_one(kind) for is_one in (*_NUMBERS, *_TIMES)):
        return np.array(_decoded(column).to_numpy(zero_copy_only=False))
    if is_list(kind):
        return _stacked(_decoded(column), where, rows, like)
    if types.is_struct(kind):
        parts = zip(kind, _decoded(column).flatten(), strict=True)
        inside = like if isinstance(like, dict) else {}
        return {
            field.name: values_of(part, f"{where} ({field.name})", rows, inside.get(field.name))
            for field, part in parts
        }
    raise InputError(
        f"{where} is {kind}, of which no array can be made; leave it out by `fields`, or write it as "
        f"numbers or strings"
    )


def rows_of(piece: Any, rows: np.ndarray) -> Any:
    """Return rows of a record batch, which ascend; a view where they follow each other."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return piece.slice(int(rows[0]), len(rows))
    return piece.take(pa.array(rows))


def plain(kind: Any) -> Any:
    """Return a type without what only says how its values are stored."""
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    return plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def is_text(kind: Any) -> bool:
    """Return whether a type holds strings, however they are stored."""
    return str(plain(kind)) in _TEXTS


def is_list(kind: Any) -> bool:
    """Return whether each value of a type is a list, of one length or of many."""
    ways = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_one(plain(kind)) for is_one in ways)


def is_list_of_numbers(kind: Any) -> bool:
    """Return whether each value of a type is a flat list of numbers."""
    return is_list(kind) and any(is_one(plain(plain(kind).value_type)) for is_one in _NUMBERS)


def said(kind: Any) -> str:
    """Return a type in words that are equal where values can be mixed."""
    kind = plain(kind)
    if is_text(kind):
        return "string"
    if is_list(kind):
        return f"list of {said(kind.value_type)}"
    if types.is_struct(kind):
        return f"struct of {', '.join(f'{field.name}: {said(field.type)}' for field in kind)}"
    return str(kind)


def find(table: Any, name: str) -> Any:
    """Return a column by name; ``meta.file`` is the field of a struct where no column is called so."""
    if name in table.column_names:
        return table.column(name)
    outer, *inner = list(_steps(table.schema, name))
    column = table.column(outer)
    for step in inner:
        column = compute.struct_field(column, step)
    return column


def top_of(schema: Any, name: str) -> str:
    """Return the column of a schema that holds ``name``; empty where there is none."""
    return next(_steps(schema, name), "")


def type_of(schema: Any, name: str) -> Any:
    """Return the type of what ``name`` is in a schema."""
    outer, *inner = list(_steps(schema, name))
    kind = schema.field(outer).type
    for step in inner:
        kind = kind.field(step).type
    return kind


def _steps(schema: Any, name: str) -> Iterator[str]:
    """Yield the names that lead to ``name``, nothing if none do."""
    if name in schema.names:
        yield name
        return
    outer, *inner = name.split(".")
    if not inner or outer not in schema.names:
        return
    kind = schema.field(outer).type
    for step in inner:
        if not types.is_struct(kind) or kind.get_field_index(step) < 0:
            return
        kind = kind.field(step).type
    yield from (outer, *inner)


def _refuse_missing(column: Any, where: str, rows: np.ndarray) -> None:
    if column.null_count:
        missing = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise InputError(
            f"row {int(rows[missing])}: {where} has no value (null); fill such rows or leave them out, "
            f"or leave out the column by `fields`"
        )


def _listed(column: Any, where: str, rows: np.ndarray) -> ListOfExamples:
    """Return Python's values of a column; Arrow does not check that its strings are UTF-8."""
    try:
        return ListOfExamples(column.to_pylist())
    except UnicodeDecodeError as error:
        raise InputError(
            f"rows {rows[0]} to {rows[-1]}: {where} holds bytes that are no UTF-8 text ({error}); write "
            f"it again as UTF-8, or as binary"
        ) from error


def _decoded(column: Any) -> Any:
    """Return one array of plain storage."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or of more than one can hold
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if types.is_dictionary(array.type) else array


def _lengths(array: Any) -> np.ndarray:
    return np.asarray(compute.list_value_length(array)).astype(np.int64)


def _stacked(array: Any, where: str, rows: np.ndarray, like: Any) -> Any:
    """Return lists of one length as one array with an axis more; lists of strings as they are."""
    if not _holds_numbers(array.type):
        return _listed(array, where, rows)
    lengths = _lengths(array)
    shaped = isinstance(like, np.ndarray) and like.ndim > 1
    width = like.shape[1] if shaped else int(lengths[0]) if len(lengths) else 0
    other = np.flatnonzero(lengths != width)
    if len(other):
        raise InputError(
            f"row {int(rows[other[0]])}: {where} holds {lengths[other[0]]} values where others hold "
            f"{width}; give length = N, to which lists of numbers are padded or cut"
        )
    within = like[:, 0] if shaped and like.ndim > 2 and width else None
    inner = values_of(array.flatten(), where, np.repeat(rows, width), within)
    return inner.reshape(len(array), width, *inner.shape[1:])


def _holds_numbers(kind: Any) -> bool:
    kind = plain(kind)
    while is_list(kind):
        kind = plain(kind.value_type)
    return any(is_one(kind) for is_one in _NUMBERS)


def _padded(column: Any, where: str, rows: np.ndarray, length: int, padding: int) -> np.ndarray:
    """Return flat lists of numbers as ``(example, length)``."""
    _refuse_missing(column, where, rows)
    array = _decoded(column)
    lengths, flat = _lengths(array), array.flatten()
    _refuse_missing(flat, where, np.repeat(rows, lengths))
    values = np.asarray(_decoded(flat).to_numpy(zero_copy_only=False))
    if padding and values.dtype.kind in "biu":
        values = values.astype(np.int64)  # -100 is no unsigned number
    filled = np.full((len(lengths), length), padding, values.dtype)
    starts = (np.cumsum(lengths) - lengths).tolist()
    for row, (start, count) in enumerate(
        zip(starts, np.minimum(lengths, length).tolist(), strict=True)
    ):
        filled[row, :count] = values[start : start + count]
    return filled
