"""What of a run must be there, and whether what is there belongs together.

A receipt says what a partition is; it cannot say that another one is lost. How many there
must be follows from the documents; and what later stages were made from cannot be missing,
while what nothing was made from yet may just not have been reached.
"""

from contextlib import suppress

from streamfluence.errors import DamageError, IncompleteError, StreamfluenceError
from streamfluence.layout import (
    COLLECT,
    PLACE,
    PREPARED,
    SCAN,
    SCORE,
    SCORES,
    SKETCH,
    collect_stage,
    decision_stage,
    generation_path,
    listing_path,
    prepared_stage,
    receipt_path,
    result_stage,
    scales_stage,
    score_path,
    score_stage,
    sketch_stage,
)
from streamfluence.run.finished import other_document, read_spec, stale
from streamfluence.run.known import Findings, Known, outvoted, sound_receipts
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepares
from streamfluence.run.rests_on import of_other_data, sketch_digest
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.sets import NO_QUERIES, score_names
from streamfluence.run.source import of_rows, scan_of
from streamfluence.store import Problem, Receipt
from streamfluence.store.digests import content_digest
from streamfluence.store.ledger import set_names

_OF_SCORES = (PREPARED, SCORE, SCORES)


def survey(run: OpenRun) -> Findings:
    """Return what of a run is lost, missing, or does not belong together; reads no rows."""
    findings = Findings()
    if run.manifest.get("holds") is not None:  # no run, and nothing says how much it must hold
        return findings
    known = Known(run)
    for path, what in known.doubtful.values():
        findings.document(path, what)
    _lost_documents(known, findings)
    _strangers(known, findings)
    needed = _needed_rows(known, findings)
    for example_set in sorted(known.sets.keys() - known.doubtful.keys()):
        for checkpoint in known.checkpoints:
            _rows(known, findings, StoredRows(run, example_set, checkpoint), needed)
    if "train" in known.sets.keys() - known.doubtful.keys():  # else all of it would be in doubt
        for checkpoint in known.checkpoints:
            _sketch(known, findings, checkpoint)
        for label in known.specs:
            _chain(known, findings, label)
    for example_set in known.sets:
        _published(known, findings, example_set)
    return findings


def _lost_documents(known: Known, findings: Findings) -> None:
    run = known.run
    made = known.below(COLLECT) | ({"train"} if known.below(SKETCH) else set())
    for name in sorted(made - set(set_names(run.storage))):
        findings.document(
            generation_path(name, 0),
            "is missing, but rows or a sketch of it are there; repeat `streamfluence run` with the job that "
            "made the run, which writes it again",
        )
    if not run.has(PLACE):
        findings.document(
            PLACE,
            "is missing, which says where task and data lie; repeat `streamfluence run` with the job, or "
            "say it by `streamfluence relocate`",
        )
    for label in sorted(set().union(*map(known.below, _OF_SCORES)) - set(score_names(run))):
        findings.document(
            score_path(label),
            "is missing, but scores of that name are there; repeat `streamfluence score` or `run` as "
            "they were made, which writes it again",
        )


def _strangers(known: Known, findings: Findings) -> None:
    """Find receipts of partitions that the run cannot have."""
    checkpoints = {str(checkpoint) for checkpoint in known.checkpoints}
    for stage in known.stages:
        top, name, *rest = [*stage.split("/"), ""]
        checkpoint = {COLLECT: rest[0] if rest else "", SKETCH: name}.get(top)
        foreign = top not in (COLLECT, SKETCH, SCAN, *_OF_SCORES)
        most: float = float("inf")
        if top == COLLECT:
            most = most if name in known.doubtful else known.sets.get(name, most)
        elif top == SCORE and name in known.specs:
            most = len(known.specs[name]["tasks"])
        elif top == PREPARED and name in known.specs:
            most = int(prepares(known.specs[name]))
        elif top == SCORES:
            most = 1
        elif top == SCAN:
            most = dict(map(scan_of, known.specs.values())).get(stage, most)
        for partition in sorted(known.there(stage)):
            if foreign or (checkpoint is not None and checkpoint not in checkpoints):
                findings.wrong(stage, partition, "belongs to no stage of this run")
            elif partition >= most:
                findings.wrong(stage, partition, f"is one too many: its stage has {most:,}")


def _needed_rows(known: Known, findings: Findings) -> dict[str, set[int]]:
    """Return the partitions of every set that scores were made from, after a look at the scores."""
    needed: dict[str, set[int]] = {}
    for label, spec in known.specs.items():
        tasks, parts = set(range(len(spec["tasks"]))), known.there(score_stage(label))
        result = bool(known.there(result_stage(label)))
        lost = sorted(tasks - parts)
        if result:
            for part in lost:
                findings.lost(
                    score_stage(label), part, f"the result of scores {label!r} was made from it"
                )
        else:
            findings.missing[result_stage(label)] = [0]
            if lost:
                findings.missing[score_stage(label)] = lost
        if not parts and not result:
            continue
        if prepares(spec) and not known.there(prepared_stage(label)):
            findings.lost(prepared_stage(label), 0, f"scores {label!r} were made with it")
        segments, count = scan_of(spec)
        for lost_segment in sorted(set(range(count)) - known.there(segments)):
            findings.lost(segments, lost_segment, f"scores {label!r} were made with it")
        queries = spec["queries"]
        if of_rows(spec):
            needed.setdefault("train", set()).update(p for task in spec["tasks"] for p in task)
        if queries == NO_QUERIES:
            continue
        if of_rows(spec):
            needed.setdefault(queries, set()).update(range(known.sets.get(queries, 0)))
        if queries not in known.run.query_sets() and queries not in known.below(COLLECT):
            findings.document(
                generation_path(queries, 0),
                f"is missing, but scores {label!r} are of it; repeat `streamfluence run` with the job",
            )
    return needed


def _rows(known: Known, findings: Findings, rows: StoredRows, needed: dict[str, set[int]]) -> None:
    stage = rows.stage
    absent = set(range(known.sets[rows.example_set])) - known.there(stage)
    used = needed.get(rows.example_set, set())
    for partition in sorted(absent & used):
        findings.lost(stage, partition, "scores were made from it")
    begun = any(known.there(each.stage) for each in stored_rows(known.run, rows.example_set))
    if begun and absent - used:
        findings.missing[stage] = sorted(absent - used)
    _bases(findings, rows)


def _bases(findings: Findings, rows: StoredRows) -> None:
    """Find rows of other examples, another set or another sketch than the run has now."""
    cut, stage = rows.examples.spans, rows.stage
    receipts = [r for r in sound_receipts(rows.run, stage) if r.partition < len(cut)]
    for receipt in receipts:
        span = cut[receipt.partition]
        if receipt.span != span:
            what = f"holds rows {receipt.start:,} to {receipt.stop:,}, not {span.start:,} to {span.stop:,}"
            findings.wrong(stage, receipt.partition, what)
    with suppress(StreamfluenceError):  # a lost or damaged sketch is told of by itself
        bases = rows.bases()
        for receipt in receipts:
            if receipt.facts.get("set") != bases[receipt.partition]["set"]:
                findings.wrong(stage, receipt.partition, "was made from another set")
        _agree(findings, rows, receipts, bases[0]["sketch"])


def _agree(findings: Findings, rows: StoredRows, receipts: list[Receipt], sketch: str) -> None:
    """Find which side is wrong where rows are of another sketch than is there: the few against the many."""
    count = outvoted(receipts, "sketch", [sketch])
    if count:
        decision, of = decision_stage(rows.checkpoint), f"{len(receipts):,} partitions"
        what = f"is not what {count:,} of {of} of {rows.example_set!r} were made from"
        problem = Problem(decision, 0, receipt_path(decision, 0), what)
        if problem.object not in {p.object for p in findings.problems}:
            findings.problems.append(problem)
        return
    for receipt in receipts:
        if str(receipt.facts.get("sketch")) != sketch:
            findings.wrong(receipt.stage, receipt.partition, "was made from another sketch")


def _sketch(known: Known, findings: Findings, checkpoint: int) -> None:
    """Find what is lost of a sketch: its decision once there are rows, and what is read beside it."""
    decision = decision_stage(checkpoint)
    for stage in known.stages:
        if stage.startswith(sketch_stage(checkpoint, "")):
            for receipt in sound_receipts(known.run, stage):
                if of_other_data(known.run, receipt):
                    findings.wrong(stage, receipt.partition, "was made from another training set")
    used = any(known.there(collect_stage(name, checkpoint)) for name in known.sets)
    begun = str(checkpoint) in known.below(SKETCH)
    if not known.there(decision):
        if used:
            findings.lost(decision, 0, "rows were made from it")
        elif begun:
            findings.missing[decision] = [0]
        if not used:
            return
    lasting = [sketch_stage(checkpoint, "coverage")]
    if known.run.method.curvature.by_weight:
        lasting.append(scales_stage(checkpoint))
    for stage in lasting:
        if not known.there(stage):
            findings.lost(stage, 0, "the sketch was made from it")
    with suppress(IncompleteError):
        try:
            sketch_digest(known.run, checkpoint)
        except DamageError as error:
            findings.wrong(decision, 0, str(error))


def _chain(known: Known, findings: Findings, label: str) -> None:
    """Find scores that were made from something else than is there now."""
    run = known.run
    try:
        spec = read_spec(run, label)
    except StreamfluenceError as error:
        if known.specs[label]["queries"] in known.sets:  # else its document is told of by itself
            findings.document(score_path(label), str(error))
        return
    with suppress(StreamfluenceError):  # what is lost or damaged is told of by itself
        if other_document(run, label, spec):
            what = "is not what its parts were made from; put back the one that was there"
            findings.document(score_path(label), what)
            return
        for stage, part in stale(run, label, spec):
            path = receipt_path(stage, part)  # not the partition's own damage: see ``rescore``
            findings.problems.append(
                Problem(stage, -1, path, "was made from something else than is there now")
            )


def _published(known: Known, findings: Findings, example_set: str) -> None:
    """Find a published set that was linked from other rows than are there now."""
    run, path = known.run, listing_path(example_set)
    with suppress(StreamfluenceError):  # one that is not there or damaged is told of by itself
        rests_on = run.read_document(path)["rests_on"]
        for stage in rests_on if isinstance(rests_on, dict) else ():
            rows = [r for r in sound_receipts(run, stage) if r.partition < known.sets[example_set]]
            if rests_on[stage] != content_digest(rows):
                findings.document(
                    path, f"was published from other rows of {stage} than are there now"
                )
