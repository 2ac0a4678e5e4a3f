"""Checks that any trustworthy scores pass, on a run's own model, data and rows, without retraining.

Each check compares a number with a threshold and says in a sentence what that
means. A failed check is not damage: the bytes are what they should be, but the
numbers they hold deserve less trust.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Encoded
from streamfluence.collecting.decision import Decision
from streamfluence.columns import ROWS, SCALE, SELF_INFLUENCE
from streamfluence.data._batches import concatenate, select_batch, slice_batch
from streamfluence.errors import InputError
from streamfluence.evaluation.lds import spearman
from streamfluence.evaluation.pilot.examples import (
    Pilot,
    choose_pilot,
    pilot_run,
    pilot_scores,
    stored_values,
    whitened,
)
from streamfluence.execution import Execution, Progress, Silent
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.columns import columns
from streamfluence.run.rows import StoredRows
from streamfluence.run.session import open_session

SAME_ROWS = {"float32": 1e-3, "bf16": 0.1}  # rounding of rows in other batches, relative
OWN_SCORE = 0.05  # few bits move a row, but their scale keeps its product with itself
RANDOM_CORRELATION = 0.5
STATIONARY = 0.25


@dataclass(frozen=True)
class Check:
    """One check: passed when ``value`` is at most ``threshold``; what it means, in a sentence."""

    name: str
    value: float
    threshold: float
    meaning: str

    def table(self) -> dict[str, Any]:
        """Return it as one row."""
        passed = bool(self.value <= self.threshold)
        return {
            "check": self.name,
            "value": self.value,
            "at_most": self.threshold,
            "verdict": "passed" if passed else "FAILED",
            "meaning": self.meaning,
        }


def evaluate_sanity(
    run_path: str,
    sample: int = 256,
    n_queries: int = 16,
    queries: str | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check that a run's scores behave as scores must.

    Args:
        sample: Training examples of the pilot, drawn over the whole training set.
        n_queries: Queries of the pilot.
        queries: Name of the query set, where the run has several.

    Returns:
        ``passed`` and ``checks``: name, value, threshold, verdict and meaning of each.

    Raises:
        InputError: If the pilot is too small, or there is no such query set.
        IncompleteError: If rows are missing.
    """
    execution, progress = execution or Execution(), progress or Silent()
    if sample < 8:
        raise InputError(f"a sample of {sample} examples is too small to rank; take at least 8")
    pilot = choose_pilot(
        open_session(run_path, execution.resolved_device()), sample, queries, n_queries
    )
    steps: list[Callable[[Pilot], list[Check]]] = [
        _self_influence,
        _other_batches,
        _sums,
        _randomised,
    ]
    progress.start("sanity", len(steps), "checks")
    checks: list[dict[str, Any]] = []
    for step in steps:
        checks += [check.table() for check in step(pilot)]
        progress.advance(1)
    progress.finish()
    return {
        "passed": all(check["verdict"] == "passed" for check in checks),
        "examples": len(pilot.rows),
        "queries": len(pilot.queries),
        "checks": checks,
    }


def _self_influence(pilot: Pilot) -> list[Check]:
    """Stored self-influence: never negative, and the score of an example as its own query."""
    run = pilot.session.run
    lowest = min(
        float(part.values[SELF_INFLUENCE].min()) for part in columns(run, [SELF_INFLUENCE])
    )
    decision = Decision(AtCheckpoint(pilot.session, 0))
    rows = torch.cat(list(whitened(decision, pilot)))
    stored = torch.from_numpy(
        stored_values(StoredRows(run, "train", 0), SELF_INFLUENCE, pilot.rows)
    ).to(rows)
    own, energy = own_scores(pilot, decision, rows)
    return [
        Check(
            "self-influence is not negative",
            max(0.0, -lowest),
            0.0,
            "a squared norm; below zero the stored column would be damaged",
        ),
        Check(
            "stored self-influence is that of rows made now",
            _relative(rows.square().sum(1), stored),
            _tolerance(pilot),
            "model, data and code still give the rows that were stored",
        ),
        Check(
            "an example's own score is its self-influence in the directions stored",
            _relative(own, energy),
            min(decision.codec.tolerance, OWN_SCORE) + _tolerance(pilot),
            "storing changes inner products by no more than the codec allows",
        ),
    ]


def own_scores(pilot: Pilot, decision: Decision, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score of each example of the pilot for itself, and what it should be.

    Args:
        rows: Its whitened rows, made now. The codec was planned for the coordinates in which
            rows are stored, which are others, so both sides are taken there.

    Returns:
        From the run's stored rows and from ``rows``, shape ``(example,)``; both over the
        directions that are stored.
    """
    stored = StoredRows(pilot.session.run, "train", 0)
    arrays = (stored_values(stored, name, pilot.rows) for name in (ROWS, SCALE))
    kept = decision.codec.decode(Encoded(*(torch.from_numpy(a).to(rows.device) for a in arrays)))
    wanted = decision.codec.query(decision.preconditioner.for_rows(rows))
    return (wanted * kept).sum(1), wanted.square().sum(1)


def _other_batches(pilot: Pilot) -> list[Check]:
    """Rows of the same examples in another order and next to copies of themselves."""
    decision = Decision(AtCheckpoint(pilot.session, 0))
    queries = torch.cat(list(whitened(decision, pilot, of_queries=True)))
    scores = torch.cat(list(whitened(decision, pilot))) @ queries.T
    order = np.random.default_rng(0).permutation(len(pilot.rows))
    shuffled = _scores_of(pilot, decision, queries, _reordered(pilot, order))
    once = order[::2]
    twice = np.concatenate([once, once[::-1]])
    doubled = _scores_of(pilot, decision, queries, _reordered(pilot, twice))
    return [
        Check(
            "the order of examples does not matter",
            _relative(shuffled, scores[torch.from_numpy(order)]),
            _tolerance(pilot),
            "an example's score does not depend on its neighbours in a batch",
        ),
        Check(
            "duplicated examples score alike",
            _relative(doubled[: len(once)], doubled.flip(0)[: len(once)]),
            _tolerance(pilot),
            "the same example twice, in different places, has the same score",
        ),
    ]


def _sums(pilot: Pilot) -> list[Check]:
    """Sums over examples, against autograd's gradient of the summed loss; only gradients add up so."""
    session, at = pilot.session, AtCheckpoint(pilot.session, 0)
    if not at.feature.gradients:
        return []
    decision, model, capture = Decision(at), at.model, at.capture
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for batch in pilot.batches:
        loss = session.measured(session.task.training_loss, model, batch).sum()
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, part in zip(weights, found, strict=True):
            if part is not None:
                total[name] += part
    queries = torch.cat(list(whitened(decision, pilot, of_queries=True)))
    rows = torch.cat(list(whitened(decision, pilot)))
    summed = decision.preconditioner.whiten(decision.features(capture.whole(total)))
    # Sums cancel where training has converged, so rounding is measured against what cancels.
    scale = (rows.norm(dim=1).sum() * queries.norm(dim=1)).clamp_min(1e-30)
    error = ((rows.sum(0) @ queries.T - summed[0] @ queries.T).abs() / scale).max()
    checks = [
        Check(
            "scores sum to the score of the summed gradient",
            float(error),
            _tolerance(pilot),
            "per-example gradients add up to autograd's, through projection and whitening",
        )
    ]
    decay = session.run.method.curvature.weight_decay
    if decay is not None:
        pull = decision.preconditioner.whiten(
            decision.features(capture.whole(dict(weights)))
        ).detach()
        mean = rows.mean(0) + decay * pull[0]
        noise = rows.square().sum(1).mean().sqrt()
        checks.append(
            Check(
                "training had converged",
                float(mean.norm() / noise),
                STATIONARY + 3 * len(rows) ** -0.5,
                "mean gradient plus weight decay, over a typical example's; influence functions "
                "assume that it is near zero, up to the noise of the pilot",
            )
        )
    return checks


def _randomised(pilot: Pilot) -> list[Check]:
    """The same job with the weights of every layer shuffled.

    Source:
        Adebayo et al., Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292.
    """
    if not any(True for _ in AtCheckpoint(pilot.session, 0).model.parameters()):
        return []  # as where all weights are quantised
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in (("trained", {}), ("random", {"model.shuffle": 1})):
            changes = {"sketch.examples": len(pilot.rows), **changes}
            path = pilot_run(pilot, Path(folder) / name, changes)
            scores.append(pilot_scores(pilot, path).scores)
    correlation = float(np.abs(spearman(scores[0].T, scores[1].T)).mean())
    return [
        Check(
            "a model of shuffled weights scores differently",
            correlation,
            RANDOM_CORRELATION,
            "rank correlation with the scores of the trained model, mean over queries; near one, "
            "scores would show the data alone and nothing that was learned",
        )
    ]


def _reordered(pilot: Pilot, order: np.ndarray) -> list[Any]:
    """Return batches of the pilot's examples at these places."""
    whole = concatenate(pilot.batches)
    places = torch.from_numpy(order).to(pilot.session.device)
    moved = select_batch(whole, places)
    size = pilot.session.run.method.batches.batch_size
    return [slice_batch(moved, i, min(i + size, len(order))) for i in range(0, len(order), size)]


def _scores_of(pilot: Pilot, decision: Decision, queries: Tensor, batches: list[Any]) -> Tensor:
    return torch.cat(list(whitened(decision, pilot, batches=batches))) @ queries.T


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _tolerance(pilot: Pilot) -> float:
    return SAME_ROWS[pilot.session.run.method.batches.precision]
