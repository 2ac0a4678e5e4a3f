"""Build frozen dataclasses from tables; an unknown key is refused with the nearest known one."""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from streamfluence.errors import InputError


def build(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """Build a frozen dataclass from a table, refusing what it does not know."""
    known = {f.name: f for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(known)}"
            raise InputError(f"{where} has no key {key!r}{hint}")
    required = [f.name for f in known.values() if _required(f)]
    missing = [name for name in required if name not in table]
    if missing:
        raise InputError(f"{where} lacks {', '.join(repr(name) for name in missing)}")
    return kind(
        **{key: _convert(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotated type, or raise with both named."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where.removeprefix('job.')} must be a table, got {value!r}")
        return build(typing.cast(type, hint), value, where.removeprefix("job."))
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(typing.get_args(hint), value, where)
    if origin is Mapping:
        return _convert_table(typing.get_args(hint)[1], value, where)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
    elif origin is tuple:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, (list, tuple)):
            return tuple(_convert(typing.get_args(hint)[0], item, where) for item in values)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif (
        hint is Any
        or origin is not None
        or (isinstance(value, hint) and not (hint is int and isinstance(value, bool)))
    ):
        return value
    raise InputError(f"{where.removeprefix('job.')} = {value!r}; expected {_describe(hint)}")


def _convert_table(hint: Any, value: Any, where: str) -> dict[str, Any]:
    """Return a table whose keys are not known here, every value as the annotated type."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where.removeprefix('job.')} must be a table, got {value!r}")
    return {key: _convert(hint, item, f"{where}.{key}") for key, item in value.items()}


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        if choice is types.NoneType:
            if value is None:
                return None
            continue
        try:
            return _convert(choice, value, where)
        except InputError:
            continue
    expected = " or ".join(_describe(choice) for choice in choices if choice is not types.NoneType)
    raise InputError(f"{where.removeprefix('job.')} = {value!r}; expected {expected}")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    return {int: "a whole number", float: "a number", str: "a string"}.get(hint, "another type")


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING
