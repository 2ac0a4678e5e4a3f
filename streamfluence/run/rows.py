"""The stored rows of an example set, checked for being all of them and for belonging together.

Every reader of rows asks here. How many partitions there must be, and which examples each
holds, follows from what pins the set; a receipt also carries digests of that pin and of the
directions its rows are in, so rows of other queries or of another sketch are found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfluence.errors import DamageError, IncompleteError
from streamfluence.layout import Span, collect_stage
from streamfluence.run.example_set import ExampleSet
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import differing, sketch_digest
from streamfluence.store import Receipt

_WORDS = {"set": "another data set or measurement", "sketch": "another sketch"}


@dataclass(frozen=True)
class StoredRows:
    """The rows of one example set at one checkpoint, whether all of them are there yet or not.

    Attributes:
        example_set: ``train``, or the name of a query set.
        checkpoint: Its number.
    """

    run: OpenRun
    example_set: str
    checkpoint: int

    @property
    def stage(self) -> str:
        """The stage whose partitions they are."""
        return collect_stage(self.example_set, self.checkpoint)

    @property
    def examples(self) -> ExampleSet:
        """What they are the rows of, as the run pins it now."""
        return self.run.example_set(self.example_set)

    def bases(self) -> list[dict[str, str]]:
        """Return the digests that the receipt of every partition carries."""
        sketch = sketch_digest(self.run, self.checkpoint)
        return [{"set": seal, "sketch": sketch} for seal in self.examples.partition_seals]

    def receipts(self, chosen: Sequence[int] | None = None) -> list[Receipt]:
        """Return the receipts of the partitions, in order.

        Args:
            chosen: Only these partitions; None takes all.

        Raises:
            IncompleteError: If a partition is missing.
            DamageError: If one holds other examples than it must, or rests on something else.
        """
        cut = self.examples.spans
        if chosen is None:
            there = self.present()
        else:
            read = {part: self.run.receipt(self.stage, part) for part in chosen}
            there = {part: receipt for part, receipt in read.items() if receipt is not None}
        wanted = list(range(len(cut)) if chosen is None else chosen)
        self.refuse_missing([partition for partition in wanted if partition not in there])
        bases = self.bases()
        for partition in wanted:
            self._check(there[partition], cut[partition], bases[partition])
        return [there[partition] for partition in wanted]

    def holding(self, rows: np.ndarray) -> Iterator[tuple[Receipt, np.ndarray]]:
        """Yield each partition that holds some of these global rows, and which of them, bool ``(row,)``.

        Raises:
            IncompleteError: If one is missing.
            DamageError: If one does not belong to the rest.
        """
        owners = self.examples.owners(rows)
        for receipt in self.receipts(np.unique(owners).tolist()):
            yield receipt, owners == receipt.partition

    def present(self) -> dict[int, Receipt]:
        """Return the receipts that are there, by partition, whatever they rest on."""
        return self.run.receipts(self.stage)

    def missing(self) -> list[int]:
        """Return the partitions that are not there; reads no receipt."""
        return self.run.missing(self.stage, self.examples.partitions)

    def require_complete(self) -> None:
        """Raise IncompleteError, with what is missing, unless every row is there."""
        self.refuse_missing(self.missing())

    def refuse_strangers(self) -> None:
        """Raise DamageError if rows that are there belong to something else than more of them would."""
        cut, bases = self.examples.spans, self.bases()
        for partition, receipt in self.present().items():
            if partition < len(cut):
                self._check(receipt, cut[partition], bases[partition])

    def refuse_missing(self, missing: Sequence[int]) -> None:
        """Raise IncompleteError that lists these partitions, unless there are none."""
        if missing:
            listed = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
            raise IncompleteError(
                f"{self.run.url}: {len(missing)} of {self.examples.partitions} partitions of "
                f"{self.example_set!r} are missing ({listed}); a missing row is not a zero, so run "
                f"`streamfluence collect` first"
            )

    def _check(self, receipt: Receipt, span: Span, bases: dict[str, str]) -> None:
        where = f"{self.run.url}: partition {receipt.partition} of stage {receipt.stage}"
        if receipt.span != span:
            raise DamageError(
                f"{where} holds the rows {receipt.start:,} to {receipt.stop:,}, but must hold "
                f"{span.start:,} to {span.stop:,}; `streamfluence repair {self.run.url}` makes it again"
            )
        changed = differing(receipt.facts, bases)
        if changed:
            raise DamageError(
                f"{where} was collected for {' and '.join(_WORDS[name] for name in changed)} than the run "
                f"has now; put back what was there, or `streamfluence repair {self.run.url}` collects it "
                "again"
            )


def stored_rows(run: OpenRun, example_set: str) -> list[StoredRows]:
    """Return the rows of an example set at every checkpoint, in order."""
    return [StoredRows(run, example_set, checkpoint) for checkpoint in run.checkpoints]
