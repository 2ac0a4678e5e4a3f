"""Write the rows of every example set at every checkpoint, partition by partition."""

from collections.abc import Iterator
from typing import Any

from streamfluence.collecting import units as work
from streamfluence.errors import IncompleteError, InputError, NonFiniteError
from streamfluence.execution import Execution, Progress, Silent, run_all
from streamfluence.layout import decision_stage
from streamfluence.run.rests_on import refuse_other_scales
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.session import Session, open_session

GROUP = 4  # partitions a task: the next is computed while the last is written


def collect(
    run_path: str,
    example_sets: list[str] | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
    worker: tuple[int, int] | None = None,
    partition: int | None = None,
) -> dict[str, Any]:
    """Collect what is missing; return counts.

    Args:
        example_sets: ``train`` and names of query sets; None takes all.
        worker: ``(i, N)``: only the partitions whose number is i modulo N.
        partition: Only this partition, of each set and checkpoint.

    Raises:
        IncompleteError: If the sketch is not there yet.
        NonFiniteError: If more rows than ``rows.max_non_finite`` are NaN or infinite.
    """
    execution, progress = execution or Execution(), progress or Silent()
    device = execution.resolved_device()
    session = open_session(run_path, device)
    _require_sketch(session)
    chosen = example_sets or ["train", *session.run.query_sets()]
    last = max(session.run.example_set(example_set).partitions for example_set in chosen) - 1
    if partition is not None and not 0 <= partition <= last:
        raise InputError(
            f"--partition {partition}: {', '.join(chosen)} have partitions 0 to {last}"
        )
    for example_set in chosen:
        for rows in stored_rows(session.run, example_set):
            rows.refuse_strangers()
    missing = [
        (example_set, rows.checkpoint, number)
        for example_set in chosen
        for rows in stored_rows(session.run, example_set)
        for number in _mine(rows, worker, partition)
    ]
    if missing:
        spans = {name: session.run.example_set(name).spans for name in chosen}
        examples = sum(len(spans[name][number]) for name, _, number in missing)
        threads = session.run.method.batches.threads
        workers = execution.worker_count(len(missing), threads)
        with execution.open(len(missing), threads) as executor:
            group = max(1, min(GROUP, len(missing) // (4 * workers)))
            tasks = [(run_path, device, *task) for task in _tasks(missing, group)]
            progress.start("collect", examples, "examples")
            run_all(
                executor, work.collect, tasks, lambda _, done: progress.advance(done["examples"])
            )
            progress.finish()
    return {"collected": len(missing), "sets": {s: _check(session, s) for s in chosen}}


def _mine(rows: StoredRows, worker: tuple[int, int] | None, partition: int | None) -> list[int]:
    missing = rows.missing()
    if partition is not None:
        return [number for number in missing if number == partition]
    if worker is not None:
        index, workers = worker
        if not 0 <= index < workers:
            raise InputError(f"--worker {index}/{workers}: i must be 0 to N - 1")
        return [number for number in missing if number % workers == index]
    return missing


def _tasks(missing: list[tuple[str, int, int]], group: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield ``(set, checkpoint, first, stop)`` for runs of consecutive missing partitions."""
    start = 0
    for i in range(1, len(missing) + 1):
        example_set, checkpoint, first = missing[start]
        if (
            i - start < group
            and i < len(missing)
            and missing[i] == (example_set, checkpoint, first + i - start)
        ):
            continue
        yield example_set, checkpoint, first, first + i - start
        start = i


def _require_sketch(session: Session) -> None:
    for checkpoint in session.run.checkpoints:
        if session.run.receipt(decision_stage(checkpoint), 0) is None:
            raise IncompleteError(
                f"{session.run.url}: checkpoint {checkpoint} has no sketch yet, and rows are stored in "
                f"the directions it chooses; run `streamfluence sketch` first"
            )
        refuse_other_scales(session.run, checkpoint)


def _check(session: Session, example_set: str) -> dict[str, Any]:
    """Return coverage and quarantine counts of one set, refusing too many non-finite rows."""
    count, limit = (
        session.run.example_set(example_set).count,
        session.run.method.rows.max_non_finite,
    )
    total, bad, present, where = 0, 0, 0, []
    for rows in stored_rows(session.run, example_set):
        for number, receipt in rows.present().items():
            facts = receipt.facts
            present += 1
            total += len(receipt.span)
            bad += facts["non_finite"]
            where += [number] if facts["non_finite"] else []
    if bad > limit * total:
        raise NonFiniteError(
            f"{bad:,} of {total:,} rows of {example_set!r} are NaN or infinite, more than "
            f"rows.max_non_finite = {limit:g} (partitions {sorted(set(where))[:8]}); they are quarantined, "
            f"so repair the data or the model, or raise the limit"
        )
    wanted = session.run.example_set(example_set).partitions * len(session.run.checkpoints)
    return {"examples": count, "partitions": present, "of": wanted, "non_finite": bad}
