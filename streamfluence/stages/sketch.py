"""Sketch the curvature of every checkpoint from a sample, before any row is written."""

from typing import Any

from streamfluence.execution import Execution, Progress
from streamfluence.layout import decision_stage, sketch_stage
from streamfluence.run.opened import OpenRun
from streamfluence.run.session import open_session
from streamfluence.run.states import load_state
from streamfluence.sketching.steps import sketch_missing


def sketch(
    run_path: str, execution: Execution | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Do what is missing of the sketch of every checkpoint; return what was decided.

    Returns:
        ``{"checkpoints": [facts of checkpoint 0, ...]}``; see ``describe``.

    Raises:
        CoverageError: If a trainable parameter cannot be captured and is not excluded.
        NonFiniteError: If the sample's gradients are NaN or infinite.
    """
    execution = execution or Execution()
    session = open_session(run_path, execution.resolved_device())
    sketch_missing(session, execution, progress)
    return describe(session.run)


def describe(run: OpenRun) -> dict[str, Any]:
    """Return the facts of a finished sketch: directions, damping, effective dimension, bits, coverage."""
    facts = []
    for checkpoint in run.checkpoints:
        coverage = load_state(run, sketch_stage(checkpoint, "coverage"), 0)[1]
        facts.append({**load_state(run, decision_stage(checkpoint), 0)[1], "coverage": coverage})
    return {"checkpoints": facts}
