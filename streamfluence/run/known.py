"""What a survey of a run knows and what it found, as far as documents and receipts are sound."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from streamfluence.errors import StreamfluenceError
from streamfluence.layout import (
    collect_stage,
    receipt_path,
    score_path,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import set_digest
from streamfluence.run.sets import score_names
from streamfluence.store import Problem, Receipt


@dataclass
class Survey:
    """What was found.

    Attributes:
        problems: What is lost, or does not belong to the rest.
        missing: Partitions by stage that are not there and that nothing was made from.
    """

    problems: list[Problem] = field(default_factory=list)
    missing: dict[str, list[int]] = field(default_factory=dict)

    def lost(self, stage: str, partition: int, why: str) -> None:
        """Add a partition that must have been there."""
        path = receipt_path(stage, partition)
        self.problems.append(Problem(stage, partition, path, f"is missing, but {why}"))

    def wrong(self, stage: str, partition: int, what: str) -> None:
        """Add a partition that is there and does not belong."""
        self.problems.append(Problem(stage, partition, receipt_path(stage, partition), what))

    def document(self, path: str, what: str) -> None:
        """Add a document."""
        self.problems.append(Problem("", -1, path, what))


class Known:
    """The sets, checkpoints and scores of a run, as far as their documents are sound."""

    def __init__(self, run: OpenRun) -> None:
        self.run = run
        self.checkpoints = run.checkpoints
        self.sets: dict[str, int] = {}
        self.specs: dict[str, Mapping[str, Any]] = {}
        for name in ["train", *run.query_sets()]:
            with suppress(StreamfluenceError):
                self.sets[name] = len(run.example_set(name).spans)
        for label in score_names(run):
            with suppress(StreamfluenceError):
                self.specs[label] = run.read_document(score_path(label))
        self.stages = run.stages()
        self.doubtful = {name for name in self.sets if name != "train" and self._doubtful(name)}

    def _doubtful(self, name: str) -> bool:
        """Return whether most rows of a query set were made from another document than is there."""
        stages = [collect_stage(name, checkpoint) for checkpoint in self.checkpoints]
        receipts = [receipt for stage in stages for receipt in sound_receipts(self.run, stage)]
        return outvoted(receipts, "set", set_digest(self.run, name)) > 0

    def there(self, stage: str) -> set[int]:
        """Return the partitions of a stage that have a receipt."""
        return set(self.run.committed(stage)) if stage in self.stages else set()

    def below(self, top: str) -> set[str]:
        """Return the names directly below ``top`` that have any receipt."""
        start = f"{top}/"
        return {s[len(start) :].split("/")[0] for s in self.stages if s.startswith(start)}


def outvoted(receipts: list[Receipt], base: str, digest: str) -> int:
    """Return how many receipts agree on another digest, if they are more than those of this one; else 0."""
    said = Counter(str(receipt.facts.get(base)) for receipt in receipts)
    most = max((count for name, count in said.items() if name != digest), default=0)
    return most if most > said[digest] else 0


def sound_receipts(run: OpenRun, stage: str) -> Iterator[Receipt]:
    """Yield the receipts of a stage that can be read; what is wrong with others is told of by itself."""
    for receipt in run.all_receipts(stage).values():
        if isinstance(receipt, Receipt):
            yield receipt
