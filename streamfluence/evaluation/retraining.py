"""Which examples a retraining keeps: a random subset, or all but a few.

A choice is a rule of a few integers, not a list, so any process can make it again; it
comes from a hash of counters, so every version of every library gives the same one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from streamfluence.errors import InputError
from streamfluence.linalg import hash_counters

_SUBSETS, _EXAMPLES = 1, 2  # streams of the hash


@dataclass(frozen=True)
class Subset:
    """Random subset ``number`` of ``size`` examples; any two numbers are independent draws."""

    size: int
    draw_seed: int
    number: int

    def kept(self, count: int) -> np.ndarray:
        """Return the sorted rows it keeps of ``count`` examples, int64."""
        return np.sort(drawn_order(self.draw_seed, _SUBSETS, self.number, count)[: self.size])


@dataclass(frozen=True)
class Without:
    """All examples but ``rows``, which are sorted and differ; no rows is the whole set."""

    rows: tuple[int, ...]

    def kept(self, count: int) -> np.ndarray:
        """Return the sorted rows it keeps of ``count`` examples, int64."""
        return np.delete(np.arange(count), np.asarray(self.rows, np.int64))

    @property
    def number(self) -> int:
        """The row itself for one row, else a number that no other group has: 60 bits of a digest."""
        if len(self.rows) <= 1:
            return sum(self.rows)
        return int(sha256(repr(self.rows).encode()).hexdigest()[:15], 16)


Choice = Subset | Without


@dataclass(frozen=True)
class Retraining:
    """One training: on what, and with which seed of the trainer."""

    choice: Choice
    seed: int


def drawn_order(seed: int, stream: int, number: int, count: int) -> np.ndarray:
    """Return rows 0 to ``count - 1`` in a random order, int64; its beginning is a random draw."""
    hashed = hash_counters(seed, stream, number, torch.arange(count))
    return hashed.argsort(stable=True).numpy()


def drawn_examples(seed: int, count: int) -> np.ndarray:
    """Return all rows in a random order; a longer draw begins with a shorter one."""
    return drawn_order(seed, _EXAMPLES, 0, count)


def subset_size(fraction: float, count: int) -> int:
    """Return how many of ``count`` examples a subset keeps.

    Raises:
        InputError: If that is none or all of them.
    """
    size = round(fraction * count) if 0 < fraction < 1 else 0
    if not 0 < size < count:
        raise InputError(
            f"--fraction {fraction:g} of {count:,} examples keeps {round(fraction * count):,} of them; "
            f"a subset must keep some and leave some out, as --fraction 0.5 does"
        )
    return size


def groups_of(rows: np.ndarray, length: int) -> list[Without]:
    """Return consecutive groups of ``length`` rows; a shorter rest at the end is left out."""
    whole = len(rows) // length * length
    return [Without(tuple(sorted(map(int, g)))) for g in rows[:whole].reshape(-1, length)]


def ignored(outcomes: Mapping[Retraining, np.ndarray]) -> str | None:
    """Return ``subset`` or ``seed`` when every two outcomes that differ in it alone are identical.

    Retraining with another seed, or on other examples, moves the last bits of some query's
    outcome at least; equal bits everywhere mean that the trainer did not look.

    Args:
        outcomes: Outcome of every query, ``(query,)``, by retraining.
    """
    for what, key in (("subset", lambda one: one.seed), ("seed", lambda one: one.choice)):
        same = [np.array_equal(a, b) for a, b in _pairs(outcomes, key)]
        if same and all(same):
            return what
    return None


def _pairs(
    outcomes: Mapping[Retraining, np.ndarray], key: Callable[[Retraining], Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield neighbours of the same key; being identical is transitive, so these are enough."""
    last: dict[Any, np.ndarray] = {}
    for retraining, outcome in outcomes.items():
        group = key(retraining)
        if group in last:
            yield last[group], outcome
        last[group] = outcome
