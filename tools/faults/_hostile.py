"""What a hostile input is, and the verbs that are tried on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

READING = ("status", "top", "export", "verify", "finalise", "results")
QUICK = ("status", "top", "verify", "results")
CHANGING = ("verify", "repair", "finalise", "export", "score")
COMPUTING = ("collect", "sketch", "repair", "sanity")


@dataclass(frozen=True)
class Hostile:
    """One hostile input: what it is called, how it is made, and which verbs are tried on it."""

    name: str
    make: Callable[..., Any]
    verbs: tuple[str, ...] = READING
