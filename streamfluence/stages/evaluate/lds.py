"""Do summed scores rank what training on random subsets does to every query?"""

from typing import Any

import numpy as np

from streamfluence.errors import InputError, NonFiniteError
from streamfluence.evaluation.asked import Judged, Trainings
from streamfluence.evaluation.lds import ceiling, interval, one_against_rest, spearman
from streamfluence.evaluation.retraining import Retraining, Subset, subset_size
from streamfluence.evaluation.truth.fill import fill, warnings
from streamfluence.evaluation.truth.kept import Truth, open_truth
from streamfluence.evaluation.truth.result import keep_result
from streamfluence.evaluation.truth.scores import JudgedScores, judged_query_set, judged_scores
from streamfluence.execution import Execution, Progress, Silent
from streamfluence.run.record import record
from streamfluence.run.session import open_session

LEAST_SUBSETS = 3  # fewer have no rank correlation worth the name


def evaluate_lds(
    run_path: str,
    subsets: int = 50,
    fraction: float = 0.5,
    judged: Judged = Judged(),
    trainings: Trainings = Trainings(),
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the linear datamodeling score of a run, after training what is missing for it.

    Args:
        subsets, fraction: How many subsets of what share of the examples. More can be added later.
        judged: Which scores.
        trainings: With which seeds and where they are kept; with a ``worker`` nothing is judged.

    Returns:
        ``lds`` with its 95 % interval (subsets and queries redrawn; subsets alone for one query),
        ``one_seed_against_rest`` and ``ceiling`` (None for one seed), counts, ``per_query``, and
        ``record``.

    Raises:
        InputError: If the task cannot be trained again, its trainer ignores its arguments, or
            there is nothing to judge by.
        IncompleteError: If rows of the run are missing.
    """
    execution, progress = execution or Execution(), progress or Silent()
    if subsets < LEAST_SUBSETS:
        raise InputError(
            f"--subsets {subsets}: at least {LEAST_SUBSETS} are needed to rank, better 100"
        )
    session = open_session(run_path, execution.resolved_device())
    if trainings.train:
        session.task.require_train()
    size = subset_size(fraction, session.run.train.count)
    example_set = judged_query_set(session.run, judged)
    wanted = [Subset(size, trainings.draw_seed, number) for number in range(subsets)]
    if trainings.worker is None:
        label = judged_scores(session.run, example_set, judged, execution, progress)
    opened_truth = open_truth(session, example_set, trainings)
    done: dict[str, Any] = {"truth": opened_truth.path}
    if trainings.train:
        done |= fill(opened_truth, session, wanted, execution, progress, trainings.worker)
    if trainings.worker is not None:
        return done
    there = wanted if trainings.train else _finished(opened_truth, wanted)
    agreement, arrays = _judged(opened_truth, JudgedScores(session.run, label), there)
    result = {**agreement, **done}
    result["warnings"] = warnings(opened_truth, session)
    result["record"] = record(session.run, label)
    return keep_result(opened_truth, "lds", result, arrays)


def _finished(truth: Truth, subsets: list[Subset]) -> list[Subset]:
    """Return the subsets that were trained with every seed."""
    lacking = {each.choice for each in truth.missing(truth.all_seeds(subsets))}
    there = [subset for subset in subsets if subset not in lacking]
    if len(there) < LEAST_SUBSETS:
        raise InputError(
            f"{truth.path} has {len(there)} of {len(subsets)} subsets of {subsets[0].size:,} examples with "
            f"{truth.seeds} seeds; leave out --no-train to train the rest, or ask for fewer --seeds"
        )
    return there


def _judged(
    truth: Truth, scores: JudgedScores, subsets: list[Subset]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the judgement, and the ``(subset, query)`` arrays it was made of."""
    outcomes = truth.outcomes(subsets)
    whole = np.isfinite(outcomes).all(axis=(0, 2))
    if whole.sum() < LEAST_SUBSETS:
        raise NonFiniteError(
            f"retraining gave NaN or infinite outcomes on {(~whole).sum()} of {len(subsets)} subsets; "
            f"training diverges, so there is nothing to judge by"
        )
    outcomes, used = outcomes[:, whole], [s for s, keep in zip(subsets, whole, strict=True) if keep]
    varying = np.ptp(outcomes.mean(axis=0), axis=0) > 0
    if not varying.any():
        raise InputError(
            f"retraining on {len(used)} subsets left all {len(varying):,} queries exactly as they were; "
            f"a constant cannot be ranked, so ask for another measurement, such as the loss"
        )
    outcomes = outcomes[:, :, varying]
    predicted = scores.subset_effects(truth, used)[:, varying]
    mean = outcomes.mean(axis=0)
    found = interval(predicted, mean)
    by_query = spearman(predicted.T, mean.T)
    several = truth.seeds > 1
    judged = {
        "lds": found.mean,
        "low": found.low,
        "high": found.high,
        "interval": f"95 %, {'subsets and queries' if varying.sum() > 1 else 'subsets'} redrawn",
        "ceiling": ceiling(outcomes) if several else None,
        "one_seed_against_rest": one_against_rest(outcomes) if several else None,
        "queries": truth.example_set,
        "measurement": truth.measurement,
        "judged_queries": int(varying.sum()),
        "constant_queries": int((~varying).sum()),
        "unpredicted_queries": int((np.ptp(predicted, axis=0) == 0).sum()),
        "subsets": len(used),
        "diverged_subsets": int((~whole).sum()),
        "kept_examples": used[0].size,
        "examples": truth.count,
        "examples_without_score": len(scores.without_score),
        "seeds": truth.seeds,
        "train_seconds": _train_seconds(truth, used),
        "per_query": [
            {"query": int(query), "lds": float(value)}
            for query, value in zip(np.flatnonzero(varying), by_query, strict=True)
        ],
    }
    return judged, {"predicted": predicted, "outcome": mean}


def _train_seconds(truth: Truth, subsets: list[Subset]) -> float:
    """Return the mean seconds of one training."""
    receipts = [truth.receipt(Retraining(subset, 0)) for subset in subsets]
    return float(np.mean([r.facts["train_seconds"] for r in receipts if r is not None]))
