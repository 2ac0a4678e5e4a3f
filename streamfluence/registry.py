"""Find the members of a family: one file a member, or an installed plug-in.

The member ``top_k`` of the family ``readouts`` is the class ``TopK`` in
``streamfluence/readouts/top_k.py``, or what the entry point ``top_k`` of the
group ``streamfluence.readouts`` loads. Names are listed without importing members.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from keyword import iskeyword
from pkgutil import iter_modules
from typing import Any

from streamfluence.errors import InputError


@dataclass(frozen=True)
class Origin:
    """Where a member comes from.

    Attributes:
        module, attribute: Where its class is defined.
        distribution: Name of the installed package it comes from; None for a member of our own.
    """

    module: str
    attribute: str
    distribution: str | None


def names(family: str) -> list[str]:
    """Return the sorted names of a family's members, plug-ins included."""
    package = import_module(f"streamfluence.{family}")
    own = {m.name for m in iter_modules(package.__path__) if _is_member(m.name)}
    return sorted(own | {point.name for point in _plugins(family)})


def member(family: str, name: str) -> Any:
    """Return the class of one member.

    Raises:
        InputError: If the family has no such member; the message lists those it has.
    """
    origin(family, name)
    for point in _plugins(family):
        if point.name == name:
            return point.load()
    module = import_module(f"streamfluence.{family}.{name}")
    return getattr(module, _class_name(name))


def origin(family: str, name: str) -> Origin:
    """Return where a member comes from, without importing it.

    Raises:
        InputError: If the family has no such member; the message lists those it has.
    """
    if name not in names(family):
        raise InputError(
            f"no {family} member is called {name!r}; there are: {', '.join(names(family))}"
        )
    for point in _plugins(family):
        if point.name == name:
            return Origin(point.module, point.attr, point.dist.name if point.dist else "unknown")
    return Origin(f"streamfluence.{family}.{name}", _class_name(name), None)


def _class_name(name: str) -> str:
    made = "".join(word.capitalize() for word in name.split("_"))
    return f"{made}_" if iskeyword(made) else made


def _is_member(name: str) -> bool:
    return name != "base" and not name.startswith("_")


def _plugins(family: str) -> tuple[EntryPoint, ...]:
    return _plugins_on(family, tuple(sys.path))


@lru_cache
def _plugins_on(family: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Listing the installed packages takes milliseconds; they change only with ``sys.path``."""
    return tuple(entry_points(group=f"streamfluence.{family}"))
