"""An example set as its ledger pins it: generations laid end to end, cut into partitions.

Partitions are cut within a generation and numbered over all, so one that is appended changes
none that is there; what was made of a partition rests on the seal of its generation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from streamfluence.layout import Span, cut
from streamfluence.store.digests import document_digest


@dataclass(frozen=True)
class Generation:
    """Examples that came to a set together.

    Attributes:
        table: Of their reader.
        start: Global row of the first.
        identity: Digests of their data.
        code: Digests of code that their reader names.
        seal: Digest of all this and of every generation before.
    """

    table: Mapping[str, Any]
    start: int
    count: int
    partition_examples: int
    identity: Any
    code: Mapping[str, str]
    seal: str

    @property
    def spans(self) -> list[Span]:
        """The global rows of its partitions."""
        return list(cut(Span(self.start, self.start + self.count), self.partition_examples))


@dataclass(frozen=True)
class ExampleSet:
    """The training set or a query set.

    Attributes:
        name: ``train``, or that of the query set.
        measurement: What is measured of its examples.
        generations: At least one.
    """

    name: str
    measurement: str
    generations: tuple[Generation, ...]

    @property
    def count(self) -> int:
        """How many examples it has."""
        return self.generations[-1].start + self.generations[-1].count

    @cached_property
    def spans(self) -> list[Span]:
        """The examples of every partition, in order."""
        return [span for generation in self.generations for span in generation.spans]

    @property
    def partitions(self) -> int:
        """Into how many partitions the set is cut."""
        return sum(-(-each.count // each.partition_examples) for each in self.generations)

    @property
    def partition_examples(self) -> int:
        """Examples of its largest partition, but where that is the last."""
        return max(generation.partition_examples for generation in self.generations)

    @property
    def seal(self) -> str:
        """Digest of all that pins the set."""
        return self.generations[-1].seal

    @property
    def seals(self) -> tuple[str, ...]:
        """What it was sealed by, from its first generation on."""
        return tuple(generation.seal for generation in self.generations)

    @cached_property
    def partition_seals(self) -> list[str]:
        """The seal of the generation that every partition is of, in order."""
        return [each.seal for each in self.generations for _ in each.spans]

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Return the partition of each of these global rows."""
        starts = np.array([span.start for span in self.spans])
        return np.searchsorted(starts, rows, side="right") - 1


def example_set_of(name: str, ledger: Sequence[Mapping[str, Any]]) -> ExampleSet:
    """Return an example set of the generations of its ledger, which are checked already."""
    return ExampleSet(name, ledger[0]["measurement"], tuple(map(_generation_of, ledger)))


def _generation_of(content: Mapping[str, Any]) -> Generation:
    keys = ("table", "start", "count", "partition_examples", "identity", "code")
    return Generation(**{key: content[key] for key in keys}, seal=document_digest(content))
