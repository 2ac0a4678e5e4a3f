"""A pass over one part of the sample: which gradients it is shown, how they are summed, how parts merge."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from streamfluence.capture import Scales, Uses
from streamfluence.errors import DamageError, NonFiniteError
from streamfluence.layout import scales_stage, sketch_stage
from streamfluence.linalg import State
from streamfluence.registry import member
from streamfluence.run.rests_on import only_receipt
from streamfluence.run.sample import sample_rows
from streamfluence.run.session import Session
from streamfluence.run.states import load_state, save_state
from streamfluence.sketching.sample import sample_batches, sample_tasks
from streamfluence.store.digests import content_digest

EXACT_COLUMNS = 32  # with at most this many outputs, probes are replaced by their exact sum
PROBES_PER_DIRECTION = 20  # examples x probes a direction; fewer leave noise in small eigenvalues
MOST_PROBES = 16


def accumulate(
    session: Session,
    checkpoint: int,
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
    source = session.curvature().source or "loss"
    scales = Scales() if stage == "squares" else session.scales(checkpoint)
    feature = session.feature(checkpoint)
    examples = number = 0
    vectors = "loss gradients" if feature.gradients else "rows of training examples"
    base = pass_base(session, checkpoint, stage)
    session.refresh("train")
    for ids, batch in sample_batches(session, checkpoint, task, at_most):
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
                f"the sketch of checkpoint {checkpoint} met NaN or infinite gradients ({key}) in part "
                f"{task} of its sample, though the losses are finite; check the model's precision"
            )
    session.refuse_touched("train")
    save_state(
        session.run,
        sketch_stage(checkpoint, stage),
        task,
        state,
        {"examples": examples, "vectors": vectors, "vectors_an_example": number},
        {"states": base},
    )


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


def merged(
    session: Session, checkpoint: int, stage: str, merge: Callable[..., Any]
) -> tuple[State, int]:
    """Return the parts of one pass merged in their fixed order, and the examples they hold.

    The state is on the device, where eigenvectors are found faster.
    """
    _refuse_other_base(session, checkpoint, stage)
    state, facts = load_state(session.run, sketch_stage(checkpoint, stage), 0)
    examples = facts["examples"]
    for task in range(1, sample_tasks(session)):
        part, facts = load_state(session.run, sketch_stage(checkpoint, stage), task)
        state, examples = merge(state, part), examples + facts["examples"]
    return {key: value.to(session.device) for key, value in state.items()}, examples


def pass_base(session: Session, checkpoint: int, stage: str) -> str:
    """Return a digest of the states that a pass over the sample was given: coordinates and directions."""
    kind = member("projections", session.run.method.projection.name)
    given = []
    if stage != "squares" and session.run.method.curvature.by_weight:
        given.append(scales_stage(checkpoint))
    fitted = sketch_stage(checkpoint, "fitted")
    if stage.startswith("refine-"):
        given.append(f"{fitted}-{int(stage.removeprefix('refine-')) - 1}")
    elif stage == "gram" and kind.fitted:
        given.append(f"{fitted}-{len(kind.passes) - 1}")
    return content_digest(only_receipt(session.run, each) for each in given)


def _refuse_other_base(session: Session, checkpoint: int, stage: str) -> None:
    """Raise DamageError unless every part of a pass was given the states that are there now."""
    base = pass_base(session, checkpoint, stage)
    for task, receipt in session.run.receipts(sketch_stage(checkpoint, stage)).items():
        if receipt.facts.get("states") != base:
            raise DamageError(
                f"part {task} of stage {receipt.stage} of {session.run.url} was made with other states of "
                f"the sketch than are there now; put back what was there, or use a new run folder"
            )
