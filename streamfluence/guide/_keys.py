"""The keys of a job, their types, defaults and meanings: read off the dataclasses of ``job``."""

import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

from streamfluence.guide._docstrings import entries, paragraphs, table
from streamfluence.job import Job

_ATOMS = {int: "whole number", float: "number", str: "string", bool: "true or false"}
_ROOT = "root"  # told from where the file lies


def keys(section: str) -> str:
    """Return the table of keys of one section of a job; ``job`` is what stands above all sections."""
    kind = Job if section == "job" else sections()[section]
    said = entries(kind.__doc__ or "", "Attributes")
    rows = [
        [f"`{name}`", type_words(hint), default_words(each), said[name]]
        for name, (each, hint) in described(kind).items()
    ]
    header = table(["Key", "Type", "Default", "Meaning"], rows)
    return header if kind is Job else f"{paragraphs(kind.__doc__ or '')[0]}\n\n{header}"


def sections() -> dict[str, Any]:
    """Return the dataclass of every section of a job, by its name in the file."""
    hints = typing.get_type_hints(Job)
    return {each.name: hints[each.name] for each in fields(Job) if is_dataclass(hints[each.name])}


def described(kind: Any) -> dict[str, tuple[Field[Any], Any]]:
    """Return the keys that are values and not sections, each with its field and type."""
    hints = typing.get_type_hints(kind)
    return {
        each.name: (each, hints[each.name])
        for each in fields(kind)
        if each.name != _ROOT and not is_dataclass(hints[each.name])
    }


def type_words(hint: Any) -> str:
    """Return a type as somebody who writes TOML calls it."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_words(each) for each in inside if each is not types.NoneType)
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' for choice in inside)
    if origin is tuple:
        return f"list of {_ATOMS[inside[0]]}s"
    return _ATOMS.get(hint, "table")


def default_words(each: Field[Any]) -> str:
    """Return a default as it would be written in TOML."""
    if each.default is MISSING:
        return "required" if each.default_factory is MISSING else "empty"
    return "not set" if each.default is None else f"`{_toml(each.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
