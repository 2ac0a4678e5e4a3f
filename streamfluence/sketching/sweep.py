"""A pass over one part of the sample: which gradients it is shown, how they are summed, how parts merge."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from streamfluence.capture import Scales, Uses
from streamfluence.errors import DamageError, NonFiniteError
from streamfluence.linalg import State
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.rests_on import only_receipt
from streamfluence.run.sample import sample_rows
from streamfluence.run.session import Session
from streamfluence.sketching.sample import sample_batches, sample_tasks
from streamfluence.store.digests import content_digest

EXACT_COLUMNS = 32  # with at most this many outputs, probes are replaced by their exact sum
PROBES_PER_DIRECTION = 20  # examples x probes a direction; fewer leave noise in small eigenvalues
MOST_PROBES = 16


def accumulate(
    at: AtCheckpoint,
    task: int,
    stage: str,
    state: State,
    update: Callable[[State, Uses, float], State] | None,
    loss: Callable[[State, Uses], State] | None = None,
    at_most: int | None = None,
) -> None:
    """Run ``update`` over one task's probes (or losses) and commit the state with its example count.

    Args:
        update: Of the curvature's vectors; None leaves them out.
        loss: Of the loss gradients beside them.
        at_most: Examples of the whole sample that are looked at.
    """
    session, feature = at.session, at.feature
    source = session.curvature().source or "loss"
    scales = Scales() if stage == "squares" else at.scales()
    examples = number = 0
    vectors = "loss gradients" if feature.gradients else "rows of training examples"
    base = pass_base(at, stage)
    session.refresh("train")
    for ids, batch in sample_batches(at, task, at_most):
        examples += len(ids)
        number = 0
        asked: list[int | None] = []
        if update is not None:
            probes = partial(_probes, session, asked)
            found = feature.curvature_vectors(
                source, batch, ids, session.run.method.sketch.seed, probes
            )
            for uses, weight in found:
                state, number = update(state, scales.apply(uses), weight), number + 1
        if loss is not None:
            state = loss(state, scales.apply(feature.measure(batch).uses))
        if source == "probes" and update is not None:
            # Not told by the weight: one probe and one exact column both weigh 1.
            exact = asked == [None]
            vectors = f"{number} exact columns" if exact else f"{number} probes an example"
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"the sketch of checkpoint {at.number} met NaN or infinite gradients ({key}) in part "
                f"{task} of its sample, though the losses are finite; check the model's precision"
            )
    session.refuse_touched("train")
    facts = {"examples": examples, "vectors": vectors, "vectors_an_example": number}
    at.save(stage, state, facts, task, {"states": base})


def _probes(session: Session, asked: list[int | None], columns: int) -> int | None:
    """Return how many probes an example gets, None for all columns, and keep the answer in ``asked``."""
    asked.append(probe_count(session, columns))
    return asked[-1]


def probe_count(session: Session, columns: int) -> int | None:
    """Return how many probes an example gets; None for the exact columns."""
    wanted = session.run.method.sketch.probes
    if wanted == "exact" or (wanted == "auto" and columns <= EXACT_COLUMNS):
        return None
    if wanted != "auto":
        return wanted
    needed = PROBES_PER_DIRECTION * session.run.method.projection.width / len(sample_rows(session))
    return min(math.ceil(needed), MOST_PROBES)


def merged(at: AtCheckpoint, stage: str, merge: Callable[..., Any]) -> tuple[State, int]:
    """Return the parts of one pass merged in their fixed order, and the examples they hold.

    The state is on the device, where eigenvectors are found faster.
    """
    _refuse_other_base(at, stage)
    state, facts = at.load(stage)
    examples = facts["examples"]
    session = at.session
    for task in range(1, sample_tasks(session)):
        part, facts = at.load(stage, task)
        state, examples = merge(state, part), examples + facts["examples"]
    return {key: value.to(session.device) for key, value in state.items()}, examples


def pass_base(at: AtCheckpoint, stage: str) -> str:
    """Return a digest of the states that a pass over the sample was given: coordinates and directions."""
    run = at.session.run
    kind = member("projections", run.method.projection.name)
    given = []
    if stage != "squares" and run.method.curvature.by_weight:
        given.append(at.stage("scales"))
    fitted = at.stage("fitted")
    if stage.startswith("refine-"):
        given.append(f"{fitted}-{int(stage.removeprefix('refine-')) - 1}")
    elif stage == "gram" and kind.fitted:
        given.append(f"{fitted}-{len(kind.passes) - 1}")
    return content_digest(only_receipt(run, each) for each in given)


def _refuse_other_base(at: AtCheckpoint, stage: str) -> None:
    """Raise DamageError unless every part of a pass was given the states that are there now."""
    base, run = pass_base(at, stage), at.session.run
    for task, receipt in run.receipts(at.stage(stage)).items():
        if receipt.facts.get("states") != base:
            raise DamageError(
                f"part {task} of stage {receipt.stage} of {run.url} was made with other states of "
                f"the sketch than are there now; put back what was there, or use a new run folder"
            )
