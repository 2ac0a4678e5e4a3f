"""Finished scores, with everything that they rest on checked before a number of them is used.

The document of a score carries the seals of its query set and of the training set; every task
carries digests of the document, the sketches and all rows that it read; the result carries that of
its tasks.
What was lost, replaced or taken from elsewhere breaks the chain at one place, which is named.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from streamfluence.errors import DamageError, IncompleteError, InputError, StreamfluenceError
from streamfluence.layout import prepared_stage, result_stage, score_path, score_stage
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import (
    PREPARED,
    prepared_changed,
    prepared_receipt,
    prepares,
    refuse_changed_preparation,
)
from streamfluence.run.rests_on import differing, set_digest, sketch_digest
from streamfluence.run.rows import stored_rows
from streamfluence.run.sets import NO_QUERIES, pinned_score_names, score_names
from streamfluence.run.source import of_rows
from streamfluence.store import Receipt
from streamfluence.store.digests import content_digest, document_digest

_WORDS = {
    "score": "other settings",
    "sketch": "another sketch",
    "queries": "other query rows",
    "train": "other training rows",
    PREPARED: "what was prepared otherwise",
}


@dataclass(frozen=True)
class Finished:
    """Scores whose chain holds.

    Attributes:
        spec: The document that says what they are.
        receipt: Of the result.
        tasks: Receipts of the parts it was merged from, in order.
    """

    label: str
    spec: dict[str, Any]
    receipt: Receipt
    tasks: list[Receipt]


def finished(run: OpenRun, label: str) -> Finished:
    """Return finished scores.

    Raises:
        IncompleteError: If they are not finished, or a part or a row they rest on is missing.
        DamageError: If something they rest on is not what it was.
    """
    spec = read_spec(run, label)
    receipt = run.receipt(result_stage(label), 0)
    if receipt is None:
        raise IncompleteError(
            f"scores {label!r} of {run.url} are not finished; run `streamfluence score`"
        )
    tasks = task_receipts(run, label, spec)
    found = {"score": document_digest(spec), "tasks": content_digest(tasks)}
    changed = differing(receipt.facts, found)
    if changed:
        what = "other settings" if "score" in changed else "other parts"
        raise DamageError(
            f"the result of scores {label!r} of {run.url} was made from {what} than are there now; "
            f"{_advice(run)}"
        )
    return Finished(label, spec, receipt, tasks)


def read_spec(run: OpenRun, label: str) -> dict[str, Any]:
    """Return the document of a score, checked: it belongs to this run and to its query set.

    Raises:
        DamageError: If it does not, or its query set is no longer pinned.
    """
    spec = run.read_document(score_path(label))
    where = f"{run.url}/{score_path(label)}"
    try:
        name, promised = spec["queries"], dict(spec["rests_on"])
        partitions = [*spec["missing_partitions"], *(p for task in spec["tasks"] for p in task)]
        whole = sorted(partitions) == list(range(run.train.partitions))
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{where} is malformed ({error}); {_advice(run)}") from error
    if name != NO_QUERIES and name not in run.query_sets():
        raise DamageError(
            f"scores {label!r} of {run.url} are of the query set {name!r}, whose document is gone; "
            f"repeat `streamfluence run` with the same job, which writes it again"
        )
    if not whole or differing(promised, spec_bases(run, name)):
        raise DamageError(
            f"{where} is of another query set {name!r}, training set or run than there are here; put back "
            f"what was there, or score under another --name"
        )
    return spec


def spec_bases(run: OpenRun, example_set: str) -> dict[str, str]:
    """Return the digests that the document of a score carries."""
    sets = {"train": set_digest(run, "train"), "queries": set_digest(run, example_set)}
    return {"run": run.fingerprint, **sets}


def task_receipts(run: OpenRun, label: str, spec: Mapping[str, Any]) -> list[Receipt]:
    """Return the receipts of all parts of a score, in order, their chain checked."""
    found = run.receipts(score_stage(label))
    missing = [task for task in range(len(spec["tasks"])) if task not in found]
    if missing:
        raise IncompleteError(
            f"scores {label!r} of {run.url} lack {len(missing)} of {len(spec['tasks'])} parts "
            f"(the first: {missing[0]}); run `streamfluence score`"
        )
    refuse_changed_preparation(run, label, spec)
    tasks = list(range(len(spec["tasks"])))
    bases = Bases(run, label, spec, tasks)
    for task in tasks:
        refuse_changed(run, label, found[task], bases)
    return [found[task] for task in tasks]


class Bases:
    """What some parts of a score must rest on, as it is now.

    Raises:
        IncompleteError: If rows or a sketch are missing, or what readouts prepared.
        DamageError: If rows do not belong together.
    """

    def __init__(
        self, run: OpenRun, label: str, spec: Mapping[str, Any], tasks: Sequence[int]
    ) -> None:
        checkpoints = run.checkpoints
        self._tasks = spec["tasks"]
        self._common = {
            "score": document_digest(spec),
            "sketch": document_digest([sketch_digest(run, c) for c in checkpoints]),
            "queries": _queries_digest(run, spec),
        }
        if prepares(spec):
            self._common[PREPARED] = content_digest([prepared_receipt(run, label)])
        if not of_rows(spec):
            self._common["train"] = set_digest(run, "train")
            return
        chosen = [partition for task in tasks for partition in self._tasks[task]]
        rows = [rows.receipts(chosen) for rows in stored_rows(run, "train")]
        self._rows = {
            partition: content_digest(receipts)
            for partition, *receipts in zip(chosen, *rows, strict=True)
        }

    def of(self, task: int) -> dict[str, str]:
        """Return the digests that the receipt of one part carries."""
        if "train" in self._common:
            return self._common
        rows = [self._rows[partition] for partition in self._tasks[task]]
        return {**self._common, "train": document_digest(rows)}


def _queries_digest(run: OpenRun, spec: Mapping[str, Any]) -> str:
    """Return the digest of the query rows of every checkpoint, or where there are none of what pins them."""
    queries = spec["queries"]
    if not of_rows(spec):
        return set_digest(run, queries)
    if queries == NO_QUERIES:
        return content_digest([])
    return content_digest(r for rows in stored_rows(run, queries) for r in rows.receipts())


def refuse_changed(run: OpenRun, label: str, receipt: Receipt, bases: Bases) -> None:
    """Raise DamageError unless one part of a score rests on what is there now."""
    changed = differing(receipt.facts, bases.of(receipt.partition))
    if changed:
        raise DamageError(
            f"part {receipt.partition} of scores {label!r} of {run.url} was made from "
            f"{' and '.join(_WORDS[name] for name in changed)} than are there now; {_advice(run)}"
        )


def parse_query(run: OpenRun, query: str, name: str | None) -> tuple[str, int]:
    """Return the name of the scores and the row of the query."""
    label, _, number = query.rpartition("/")
    if not re.fullmatch(r"-?[0-9]{1,18}", number):
        raise InputError(f"query {query!r} is neither INDEX nor SET/INDEX")
    names = pinned_score_names(run)
    label = name or label
    if not label:
        if len(names) != 1:
            known = ", ".join(names) or "none yet: run `streamfluence score`"
            raise (InputError if names else IncompleteError)(
                f"{run.url} has {len(names)} scores ({known}); name one as SET/{number}"
            )
        label = names[0]
    if label not in names:
        raise InputError(
            f"{run.url} has no scores {label!r}; there are: {', '.join(names) or 'none'}"
        )
    return label, int(number)


def _advice(run: OpenRun) -> str:
    return f"put back what was there, or `streamfluence repair {run.url}` makes the scores again"


def stale(run: OpenRun, label: str, spec: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return stage and partition of every part of a score that was made from something else than is there.

    Raises:
        DamageError: If nothing there was made from its document: then that is what was replaced.
    """
    tasks, count = run.receipts(score_stage(label)), len(spec["tasks"])
    bases = Bases(run, label, spec, range(count))
    wrong = [(prepared_stage(label), 0)] if prepared_changed(run, label, spec) else []
    wrong += [
        (score_stage(label), task)
        for task, receipt in sorted(tasks.items())
        if task >= count or differing(receipt.facts, bases.of(task))
    ]
    result = run.receipt(result_stage(label), 0)
    if other_document(run, label, spec):
        raise DamageError(
            f"{run.url}/{score_path(label)} is not what the parts of scores {label!r} were made from; put "
            f"back the one that was there, or score under another --name"
        )
    if result is not None:
        parts = [tasks[task] for task in range(count) if task in tasks]
        found = {"score": document_digest(spec), "tasks": content_digest(parts)}
        if wrong or (len(parts) == count and differing(result.facts, found)):
            wrong.append((result_stage(label), 0))
    return wrong


def other_document(run: OpenRun, label: str, spec: Mapping[str, Any]) -> bool:
    """Return whether parts of a score are there, and none of them was made from its document."""
    parts = [
        *run.receipts(score_stage(label)).values(),
        *run.receipts(result_stage(label)).values(),
    ]
    return bool(parts) and document_digest(spec) not in {p.facts.get("score") for p in parts}


def unmerged_scores(run: OpenRun) -> list[str]:
    """Return the names of scores of which every part is there, but not the result."""
    found = []
    for name in score_names(run):
        with suppress(StreamfluenceError):
            whole = not run.missing(score_stage(name), len(read_spec(run, name)["tasks"]))
            found += [name] if whole and not run.receipt_there(result_stage(name), 0) else []
    return found


def stale_scores(run: OpenRun) -> list[str]:
    """Return the names of scores of which something no longer rests on what is there.

    Scores of which that cannot be said, because something is missing or damaged, are not among them.
    """
    found = []
    for name in score_names(run):
        with suppress(StreamfluenceError):
            found += [name] if stale(run, name, read_spec(run, name)) else []
    return found
