"""Do scores predict what training without an example, or a group of them, does to every query?"""

from typing import Any

import numpy as np
import torch

from streamfluence.columns import LOSS, SELF_INFLUENCE
from streamfluence.errors import InputError, NonFiniteError
from streamfluence.evaluation.asked import Judged, Trainings
from streamfluence.evaluation.leave_out import judge, leverage, standard_error
from streamfluence.evaluation.retraining import Without, groups_of
from streamfluence.evaluation.truth.chosen import Chosen
from streamfluence.evaluation.truth.fill import fill, warnings
from streamfluence.evaluation.truth.kept import Truth, open_truth
from streamfluence.evaluation.truth.result import keep_result
from streamfluence.evaluation.truth.scores import JudgedScores, judged_query_set, judged_scores
from streamfluence.execution import Execution, Progress, Silent
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.finished import finished
from streamfluence.run.record import predicts, record
from streamfluence.run.session import Session, open_session

EVERYTHING = Without(())


def evaluate_loo(
    run_path: str,
    chosen: Chosen,
    query: int | None = None,
    judged: Judged = Judged(),
    trainings: Trainings = Trainings(seeds=3),
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return predicted and actual changes of the queries when examples are left out.

    Args:
        chosen: Which examples, in groups. All of a group are left out together.
        query: Judge, and choose those of largest score, by this query alone; else by all.
        judged, trainings: As in ``evaluate_lds``; a change is taken within a seed.

    Returns:
        Agreement as ``evaluation.leave_out.judge`` has it, the same with scores over one minus
        leverage where there is a formula (``leverage_corrected``, single examples only), ``left_out``
        (a row a group: predicted, actual, standard error, means over the judged queries), ``record``.

    Raises:
        InputError: If the examples, the task or the ground truth cannot be used.
        IncompleteError: If rows of the run are missing.
    """
    execution, progress = execution or Execution(), progress or Silent()
    session = open_session(run_path, execution.resolved_device())
    if trainings.train:
        session.task.require_train()
    example_set = judged_query_set(session.run, judged)
    asked, leave = _judged_queries(session, example_set, query), chosen.leave
    chosen.check(session.run.train.count)
    label = judged_scores(session.run, example_set, judged, execution, progress)
    if not predicts(session.run, finished(session.run, label)):
        raise InputError(
            f"scores {label!r} are similarities or scaled, not predicted changes of the query, which is what "
            "leaving examples out is compared with; judge their order by `streamfluence evaluate lds`"
        )
    of_run = JudgedScores(session.run, label)
    groups = groups_of(chosen.rows(of_run, asked, trainings.draw_seed), leave)
    opened_truth = open_truth(session, example_set, trainings)
    done: dict[str, Any] = {"truth": opened_truth.path}
    if trainings.train:
        wanted = [EVERYTHING, *groups]
        done |= fill(opened_truth, session, wanted, execution, progress, trainings.worker)
    if trainings.worker is not None:
        return done
    there = groups if trainings.train else _finished(opened_truth, groups)
    changes = _changes(opened_truth, there, asked)
    rows = np.array([row for group in there for row in group.rows])
    predicted = of_run.of_rows(rows)[:, asked].reshape(len(there), leave, -1).sum(axis=1)
    result = {
        **judge(predicted, changes),
        "leverage_corrected": _corrected(session, of_run, there, predicted, changes),
        "queries": example_set,
        "judged_queries": len(asked),
        "measurement": opened_truth.measurement,
        "groups": len(there),
        "examples_a_group": leave,
        "examples": opened_truth.count,
        "examples_without_score": len(of_run.without_score.intersection(rows.tolist())),
        "seeds": trainings.seeds,
        **done,
        "warnings": warnings(opened_truth, session),
        "left_out": _table(there, predicted, changes),
        "record": record(session.run, label),
    }
    return keep_result(opened_truth, "loo", result, {"predicted": predicted, "actual": changes})


def _judged_queries(session: Session, example_set: str, query: int | None) -> np.ndarray:
    count = session.run.example_set(example_set).count
    if query is None:
        return np.arange(count)
    if not 0 <= query < count:
        raise InputError(f"--query {query}: {example_set!r} has queries 0 to {count - 1}")
    return np.array([query])


def _finished(truth: Truth, groups: list[Without]) -> list[Without]:
    """Return the groups that were trained without with every seed, if all examples were, too."""
    lacking = {each.choice for each in truth.missing(truth.all_seeds([EVERYTHING, *groups]))}
    there = [group for group in groups if group not in lacking]
    if EVERYTHING in lacking or not there:
        raise InputError(
            f"{truth.path} has {len(there)} of {len(groups)} groups with {truth.seeds} seeds, and the whole "
            f"set {'not ' if EVERYTHING in lacking else ''}with all of them; leave out --no-train to train"
        )
    return there


def _changes(truth: Truth, groups: list[Without], judged: np.ndarray) -> np.ndarray:
    """Return the actual changes, ``(seed, group, query)``."""
    changes: np.ndarray = (truth.outcomes(groups) - truth.outcomes([EVERYTHING]))[:, :, judged]
    bad = ~np.isfinite(changes).all(axis=(0, 2))
    if bad.any():
        raise NonFiniteError(
            f"retraining gave NaN or infinite outcomes for {bad.sum()} of {len(groups)} groups (or for the "
            f"whole set); training diverges, so there is nothing to judge by"
        )
    if not changes.any():
        raise InputError(
            f"leaving out {len(groups)} groups left every query exactly as it was; nothing can be judged, "
            f"so ask for another measurement, such as the loss"
        )
    return changes


def _corrected(
    session: Session,
    scores: JudgedScores,
    groups: list[Without],
    predicted: np.ndarray,
    changes: np.ndarray,
) -> dict[str, Any] | None:
    """Return the judgement of scores over one minus leverage, None where leverage has no formula."""
    outputs = _outputs(session)
    if outputs is None or len(groups[0].rows) != 1:
        return None
    rows = np.array([group.rows[0] for group in groups])
    found = leverage(
        *(scores.column(SELF_INFLUENCE, rows), scores.column(LOSS, rows)),
        *(type(session.task.likelihood).__name__, outputs),
    )
    if found is None:
        return None
    judged = judge(predicted / (1 - found)[:, None], changes)
    agreements = ("within_queries", "across_queries", "centred")
    return {**{key: judged[key] for key in agreements}, "largest_leverage": float(found.max())}


def _outputs(session: Session) -> int | None:
    """Return the numbers a model puts out for one example; None if it has several positions."""
    if session.task.likelihood is None:
        return None
    batch = session.batch(session.reader("train").read(0, 2))
    with torch.no_grad():
        outputs, targets, *more = session.forward_at(False, AtCheckpoint(session, 0).model, batch)
    if more or session.task.has_training_loss:  # then leverage is not a function of the loss
        return None
    several = targets[0].numel() > 1 and type(session.task.likelihood).__name__ == "Categorical"
    return None if several else outputs[0].numel()


def _table(
    groups: list[Without], predicted: np.ndarray, changes: np.ndarray
) -> list[dict[str, Any]]:
    actual = changes.mean(axis=2)  # over queries first: their noise is shared
    errors = standard_error(actual) if len(actual) > 1 else np.full(len(groups), np.nan)
    return [
        {
            "example": group.rows[0] if len(group.rows) == 1 else list(group.rows),
            "predicted": float(guess),
            "actual": float(change),
            "standard_error": None if np.isnan(error) else float(error),
        }
        for group, guess, change, error in zip(
            groups, predicted.mean(axis=1), actual.mean(axis=0), errors, strict=True
        )
    ]
