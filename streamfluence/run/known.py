"""What a survey of a run knows and what it found, as far as documents and receipts are sound."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from streamfluence.errors import StreamfluenceError
from streamfluence.layout import (
    generation_path,
    holds_rows,
    is_of_sketch,
    receipt_path,
    score_path,
)
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import stored_rows
from streamfluence.run.sets import score_names
from streamfluence.store import Problem, Receipt


@dataclass
class Findings:
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
        self.sets: dict[str, int] = {}  # partitions of each
        self.specs: dict[str, Mapping[str, Any]] = {}
        for name in run.example_sets():
            with suppress(StreamfluenceError):
                self.sets[name] = run.example_set(name).partitions
        for label in score_names(run):
            with suppress(StreamfluenceError):
                self.specs[label] = run.read_document(score_path(label))
        self.stages = run.stages()
        doubts = {name: self._doubt(name) for name in self.sets}
        self.doubtful = {name: doubt for name, doubt in doubts.items() if doubt is not None}

    def _receipts_of(self, name: str) -> list[Receipt]:
        """Return the receipts of what was made of a set: its rows, and of the training set the sketch."""
        stages = [rows.stage for rows in stored_rows(self.run, name)]
        if name == "train":
            stages += filter(is_of_sketch, self.stages)
        return [receipt for stage in stages for receipt in sound_receipts(self.run, stage)]

    def _doubt(self, name: str) -> tuple[str, str] | None:
        """Return the path of a generation that is lost or replaced, and what is wrong with it, if one is."""
        seals, made = self.run.example_set(name).seals, self._receipts_of(name)
        beyond = [r for r in made if holds_rows(r.stage) and r.partition >= self.sets[name]]
        if any(receipt.facts.get("set") not in seals for receipt in beyond):
            lost = generation_path(name, len(seals))
            return lost, "is missing, but rows of it are there; put back what was there"
        if outvoted(made, "set", seals):
            what = "is not what its rows were made from; put back the one that was there"
            return generation_path(name, 0), what
        return None

    def there(self, stage: str) -> set[int]:
        """Return the partitions of a stage that have a receipt."""
        return set(self.run.committed(stage)) if stage in self.stages else set()

    def below(self, top: str) -> set[str]:
        """Return the names directly below ``top`` that have any receipt."""
        start = f"{top}/"
        return {s[len(start) :].split("/")[0] for s in self.stages if s.startswith(start)}


def outvoted(receipts: list[Receipt], base: str, digests: Collection[str]) -> int:
    """Return how many receipts agree on another digest, if they are more than those of these; else 0."""
    said = Counter(str(receipt.facts.get(base)) for receipt in receipts)
    most = max((count for name, count in said.items() if name not in digests), default=0)
    return most if most > sum(said[digest] for digest in digests) else 0


def sound_receipts(run: OpenRun, stage: str) -> Iterator[Receipt]:
    """Yield the receipts of a stage that can be read; what is wrong with others is told of by itself."""
    for receipt in run.all_receipts(stage).values():
        if isinstance(receipt, Receipt):
            yield receipt
