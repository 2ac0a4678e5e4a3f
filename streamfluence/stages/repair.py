"""Make again exactly what is damaged or lost: set it aside, then do what is missing.

A receipt that was set aside stays in the run as the record of it, so a repair that was
killed is taken up by the next one.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from streamfluence.errors import DamageError, Interrupted, StorageError, StreamfluenceError
from streamfluence.execution import Execution, Progress
from streamfluence.layout import (
    COLLECT,
    IDENTITIES,
    PREPARED,
    SCORE,
    SCORES,
    SKETCH,
    decision_stage,
    result_stage,
    score_path,
)
from streamfluence.run.finished import stale_scores, unmerged_scores
from streamfluence.run.opened import OpenRun
from streamfluence.run.sets import score_names
from streamfluence.run.source import scan_of
from streamfluence.run.survey import survey
from streamfluence.scoring.score import rescore
from streamfluence.sketching.steps import LASTING
from streamfluence.stages.collect import collect
from streamfluence.stages.finalise import finalise
from streamfluence.stages.sketch import sketch
from streamfluence.stages.verify import described
from streamfluence.store import ANYTHING, Problem
from streamfluence.store.verify_rest import set_of

Place = tuple[str, int]


def repair(
    run_path: str, execution: Execution | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Verify every byte, make again what is damaged or lost, and remove what nothing refers to.

    Partitions that are merely missing stay missing, unless something was made from them, an earlier
    repair set them aside, or all that they are merged from is there.

    Returns:
        ``set_aside`` (what was damaged, and how), ``repaired`` (what was made again),
        ``sets`` published again, and ``removed``: damaged shortcuts and leftovers.

    Raises:
        DamageError: If the manifest itself is in doubt, and then nothing was changed; or if
            something remains that cannot be made again here, after all else was.
    """
    run = OpenRun.open(run_path, ANYTHING)
    run.refuse_doubtful_manifest()
    problems = [*run.verify(), *survey(run).problems]
    aside = _set_aside(run, problems)
    wanted = {(p.stage, p.partition) for p in problems if p.partition >= 0} | {*run.unfinished()}
    is_run = run.manifest.get("holds") is None
    wanted |= {(result_stage(label), 0) for label in unmerged_scores(run)} if is_run else set()
    removed = _remove_shortcuts(run, problems)
    failed: list[str] = []
    if is_run:  # else whoever made it goes on where something is missing
        for steps in _steps(run, wanted, execution, progress):
            for step in steps():
                _attempt(step, failed)
    sets = sorted({name for p in problems if (name := set_of(p.object)) is not None})
    for name in sets:
        _attempt(partial(finalise, run_path, name), failed)
    removed += [leftover.path for leftover in run.collect_garbage()]
    made = sorted(place for place in wanted if run.receipt_there(*place))
    remaining = [*run.verify(fraction=0.0), *survey(run).problems]
    if remaining or failed:
        raise DamageError(
            f"{run_path}: {len(aside)} receipts were set aside and {len(made)} partitions made again, but "
            f"not all could be: {'; '.join([*failed, *([described(remaining)] if remaining else [])])}"
        )
    return {
        "run": run_path,
        "set_aside": aside,
        "repaired": [{"stage": stage, "partition": partition} for stage, partition in made],
        "sets": sets,
        "removed": removed,
    }


def _set_aside(run: OpenRun, problems: list[Problem]) -> list[dict[str, Any]]:
    """Set the receipts of damaged partitions aside; return which, and what was wrong with them."""
    aside = []
    first = {(p.stage, p.partition): p for p in reversed(problems) if p.partition >= 0}
    for (stage, partition), problem in sorted(first.items()):
        if run.discard(stage, partition):
            what = problem.what.partition("; ")[0]
            aside.append(
                {"stage": stage, "partition": partition, "object": problem.object, "what": what}
            )
    return aside


def _remove_shortcuts(run: OpenRun, problems: list[Problem]) -> list[str]:
    """Remove damaged identities: each is made again by whoever needs it."""
    paths = sorted({p.object for p in problems if p.object.startswith(f"{IDENTITIES}/")})
    for path in paths:
        run.storage.remove(path)
    return paths


def _steps(
    run: OpenRun,
    wanted: set[Place],
    execution: Execution | None,
    progress: Progress | None,
) -> list[Callable[[], list[Callable[[], Any]]]]:
    """Return what makes the wanted partitions, in the order in which one rests on the other.

    Each entry returns steps that do not rest on one another: where one cannot be done the others can.
    """

    def sketches() -> list[Callable[[], Any]]:
        needed = any(_is_needed(run, place) for place in _lacking(run, wanted))
        return [partial(sketch, run.url, execution, progress)] if needed else []

    def rows() -> list[Callable[[], Any]]:
        lacking: dict[str, set[int]] = {}
        for stage, number in filter(partial(_has_examples, run), _lacking(run, wanted)):
            lacking.setdefault(stage.split("/")[1], set()).add(number)
        return [partial(rows_of, name, sorted(lacking[name])) for name in sorted(lacking)]

    def rows_of(example_set: str, numbers: list[int]) -> None:
        for number in numbers:
            collect(run.url, [example_set], execution, progress, partition=number)

    def scores() -> list[Callable[[], Any]]:
        lacking = {
            stage.split("/")[1]
            for stage, _ in _lacking(run, wanted)
            if stage.startswith((PREPARED, SCORE, SCORES))
        }
        stages = {stage for stage, _ in _lacking(run, wanted)}
        lacking |= {name for name in score_names(run) if _walked(run, name) in stages}
        labels = sorted(lacking & set(score_names(run)) | set(stale_scores(run)))
        return [partial(rescore, run, label, execution, progress) for label in labels]

    return [sketches, rows, scores]


def _walked(run: OpenRun, label: str) -> str | None:
    """Return the stage of the recorded training that scores are made of, as far as that can be known."""
    with suppress(StreamfluenceError):
        return scan_of(run.read_document(score_path(label)))[0]
    return None


def _lacking(run: OpenRun, wanted: set[Place]) -> list[Place]:
    return sorted(place for place in wanted if not run.receipt_there(*place))


def _is_needed(run: OpenRun, place: Place) -> bool:
    """Return whether a part of a sketch is: all of it before there is a decision, then what outlasts it."""
    top, checkpoint, *step = [*place[0].split("/"), ""]
    if top != SKETCH or not checkpoint.isdecimal():
        return False
    return step[0] in LASTING or not run.receipt_there(decision_stage(int(checkpoint)), 0)


def _has_examples(run: OpenRun, place: Place) -> bool:
    """Return whether a place is one of rows that the run can have, as far as that can be known."""
    top, example_set, *checkpoint = [*place[0].split("/"), ""]
    if top != COLLECT or checkpoint[0] not in map(str, run.checkpoints):
        return False
    with suppress(StreamfluenceError):  # the document that says how many there are is damaged
        return place[1] < len(run.example_set(example_set).spans)
    return False


def _attempt(step: Callable[[], Any], failed: list[str]) -> None:
    """Do one step; what hinders it hinders no other."""
    try:
        step()
    except (Interrupted, StorageError):
        raise
    except StreamfluenceError as error:
        failed.append(str(error))
