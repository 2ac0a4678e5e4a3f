"""The stored rows of an example set, checked for being all of them and for belonging together.

Every reader of rows asks here. How many partitions there must be, and which examples each
holds, follows from what pins the set; a receipt also carries digests of that pin and of the
directions its rows are in, so rows of other queries or of another sketch are found.
"""

from collections.abc import Sequence

from streamfluence.errors import DamageError
from streamfluence.layout import Span, collect_stage
from streamfluence.run.opened import OpenRun
from streamfluence.run.rests_on import differing, sketch_digest
from streamfluence.run.sets import refuse_missing
from streamfluence.store import Receipt

_WORDS = {"set": "another data set or measurement", "sketch": "another sketch"}


def row_bases(run: OpenRun, example_set: str, checkpoint: int) -> list[dict[str, str]]:
    """Return the digests that the receipt of every partition of these rows carries."""
    sketch, pinned = sketch_digest(run, checkpoint), run.example_set(example_set)
    return [{"set": seal, "sketch": sketch} for seal in pinned.partition_seals]


def row_receipts(
    run: OpenRun, example_set: str, checkpoint: int, chosen: Sequence[int] | None = None
) -> list[Receipt]:
    """Return the receipts of a set's rows at one checkpoint, in order.

    Args:
        chosen: Only these partitions; None takes all.

    Raises:
        IncompleteError: If a partition is missing.
        DamageError: If one holds other examples than it must, or rests on something else.
    """
    stage, cut = collect_stage(example_set, checkpoint), run.example_set(example_set).spans
    if chosen is None:
        found = run.receipts(stage)
    else:
        read = {partition: run.receipt(stage, partition) for partition in chosen}
        found = {partition: receipt for partition, receipt in read.items() if receipt is not None}
    wanted = list(range(len(cut)) if chosen is None else chosen)
    missing = [partition for partition in wanted if partition not in found]
    if missing:
        refuse_missing(run, example_set, missing)
    bases = row_bases(run, example_set, checkpoint)
    for partition in wanted:
        _check(run, found[partition], cut[partition], bases[partition])
    return [found[partition] for partition in wanted]


def refuse_strangers(run: OpenRun, example_set: str, checkpoint: int) -> None:
    """Raise DamageError if rows that are there belong to something else than more of them would."""
    stage, cut = collect_stage(example_set, checkpoint), run.example_set(example_set).spans
    bases = row_bases(run, example_set, checkpoint)
    for partition, receipt in run.receipts(stage).items():
        if partition < len(cut):
            _check(run, receipt, cut[partition], bases[partition])


def _check(run: OpenRun, receipt: Receipt, span: Span, bases: dict[str, str]) -> None:
    where = f"{run.url}: partition {receipt.partition} of stage {receipt.stage}"
    if receipt.span != span:
        raise DamageError(
            f"{where} holds the rows {receipt.start:,} to {receipt.stop:,}, but must hold "
            f"{span.start:,} to {span.stop:,}; `streamfluence repair {run.url}` makes it again"
        )
    changed = differing(receipt.facts, bases)
    if changed:
        raise DamageError(
            f"{where} was collected for {' and '.join(_WORDS[name] for name in changed)} than the run "
            f"has now; put back what was there, or `streamfluence repair {run.url}` collects it again"
        )
