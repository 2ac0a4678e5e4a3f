"""Check the options of a reader as they come from a job's table."""

from collections.abc import Sequence
from typing import Any

from streamfluence.errors import InputError


def text(option: str, value: Any) -> str:
    """Return ``value`` if it is a string that is not empty, else raise InputError."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{option} must be a string, not {value!r}")
    return value


def strings(option: str, value: Any) -> list[str]:
    """Return a string or a list of strings as a list, else raise InputError."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(each, str) for each in listed):
        raise InputError(f"{option} must be a string or a list of strings, not {value!r}")
    if not listed:
        raise InputError(f"{option} is an empty list; leave it out or name something")
    return list(listed)


def positive(option: str, value: Any) -> int:
    """Return ``value`` if it is a whole number above zero, else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{option} must be a whole number above 0, not {value!r}")
    return value


def flag(option: str, value: Any) -> bool:
    """Return ``value`` if it is true or false, else raise InputError."""
    if not isinstance(value, bool):
        raise InputError(f"{option} must be true or false, not {value!r}")
    return value
