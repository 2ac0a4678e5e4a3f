"""What a run's bytes buy: agreement of its scores with unprojected Gauss-Newton, without retraining.

On a pilot of training examples and queries, the reference solves the damped
Gauss-Newton system of the whole model by a member of ``solvers``. Other settings are
sketched on the pilot from the run's own manifest; the reference's matrix is that
of the same pilot, so that a pilot run differs from it by projection, probes and
codec alone.
"""

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamfluence.capture import Scales
from streamfluence.errors import InputError
from streamfluence.evaluation.asked import Compared, Others
from streamfluence.evaluation.fidelity import agreement
from streamfluence.evaluation.pilot.examples import (
    Pilot,
    PilotScores,
    choose_pilot,
    pilot_run,
    pilot_scores,
    stored_scores,
)
from streamfluence.evaluation.pilot.reference import Solution, reference_scores
from streamfluence.execution import Execution, Progress, Silent
from streamfluence.layout import decision_stage
from streamfluence.options import make
from streamfluence.registry import member
from streamfluence.run.at_checkpoint import AtCheckpoint, at_checkpoints
from streamfluence.run.doubts import energy_kept
from streamfluence.run.opened import OpenRun
from streamfluence.run.record import decision_facts, sketch_warnings
from streamfluence.run.sample import sample_rows
from streamfluence.run.session import Session, open_session
from streamfluence.run.unprojected import dampings

FEW_LAYERS = 8  # with more, a reference by layer costs more than all else together


@dataclass(frozen=True)
class Setting:
    """One way to make scores: its name, and what it changes in the manifest."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)


def evaluate_fidelity(
    run_path: str,
    compared: Compared = Compared(),
    others: Others = Others(),
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the scores of a run, and of other settings, with unprojected Gauss-Newton.

    Args:
        compared: On which examples and queries, with which reference.
        others: Other settings to try, each value alone.

    Returns:
        ``settings``: one row a setting and reference, with Spearman, overlap of the ``k`` largest and
        relative error, means over queries; the codec's measured error; and the facts of the solve.

    Raises:
        InputError: If the task has no output Hessian, the run no curvature, or a value is no setting.
        IncompleteError: If rows are missing.
    """
    execution, progress = execution or Execution(), progress or Silent()
    settings = _settings(others)
    session = open_session(run_path, execution.resolved_device())
    _refuse(session, compared.sample, compared.k)
    pilot = choose_pilot(session, compared.sample, compared.queries, compared.n_queries)
    comparison = _Comparison(pilot, compared)
    rows: list[dict[str, Any]] = []
    progress.start("fidelity", 2 + len(settings), "settings")
    rows += comparison.rows("the run as stored", pilot.session, stored_scores(pilot))
    progress.advance(1)
    with tempfile.TemporaryDirectory() as folder:
        first: OpenRun | None = None
        for number, setting in enumerate([Setting("the run's settings on the pilot"), *settings]):
            changes = {"sketch.examples": compared.sample, **setting.changes}
            path = pilot_run(pilot, Path(folder) / str(number), changes, first)
            session = open_session(path, pilot.device)
            first = first or session.run
            rows += comparison.rows(setting.name, session, pilot_scores(pilot, path))
            progress.advance(1)
    progress.finish()
    return {
        "examples": len(pilot.rows),
        "queries": len(pilot.queries),
        "query_set": pilot.example_set,
        "checkpoints": len(pilot.session.run.checkpoints),
        "reference_sample": _sample_note(pilot),
        "settings": rows,
        "reference": comparison.solves(),
        "warnings": sketch_warnings(pilot.session.run),
    }


class _Comparison:
    """Compares scores with references, each solved once a damping."""

    def __init__(self, pilot: Pilot, compared: Compared) -> None:
        self._pilot, self._k, self._double = pilot, compared.k, compared.double
        self._solver = make("solvers", compared.solver, {})
        blocks = AtCheckpoint(pilot.session, 0).feature.blocks
        layered = pilot.session.run.method.curvature.blocks == "layer"
        few = layered and 1 < len(blocks) <= FEW_LAYERS
        self._kinds = (
            [True, False] if (few if compared.by_layer is None else compared.by_layer) else [False]
        )
        self._solved: dict[tuple[Any, Any, bool], Solution] = {}

    def rows(self, name: str, session: Session, scored: PilotScores) -> list[dict[str, Any]]:
        """Return one row a reference, at the damping of the run that made the scores."""
        run, decision = session.run, decision_facts(session.run, 0)
        damping = dampings(
            decision if decision["blocks"] else decision_facts(self._pilot.session.run, 0)
        )
        facts, codec = scored.stored, decision["codec"]
        shared = {
            "row_bytes": _row_bytes(run, codec),
            "directions": decision["directions"],
            "effective_dimension": sum(b["effective_dimension"] for b in decision["blocks"]),
            "gradient_energy_kept": energy_kept(decision, run.train.count),
            "codec_error": (facts["error"] / facts["rows"]) ** 0.5 if facts.get("rows") else 0.0,
            "codec_energy_kept": facts["kept"] / facts["rows"] if facts.get("rows") else 1.0,
        }
        found, scales = [], [at.scales() for at in at_checkpoints(session)]
        for by_layer in self._kinds:
            solution = self._solve(damping, scales, by_layer)
            measured = agreement(scored.scores, solution.scores, self._k)
            found.append(
                {
                    "setting": name,
                    "reference": _kind(by_layer),
                    "spearman": measured.spearman,
                    f"top_{self._k}_overlap": measured.top_overlap,
                    "relative_error": measured.relative_error,
                    **shared,
                }
            )
        return found

    def solves(self) -> list[dict[str, Any]]:
        """Return how well each system was solved."""
        return [
            {
                "reference": f"Gauss-Newton, unprojected, {_kind(by_layer)}",
                "damping": ", ".join(f"{value:.3g}" for value in sorted({v for _, v in damping})),
                "steps": solution.steps,
                "residual": solution.residual,
                "converged": solution.converged,
                "precision": solution.precision,
            }
            for (damping, _, by_layer), solution in self._solved.items()
        ]

    def _solve(self, damping: dict[str, float], scales: list[Scales], by_layer: bool) -> Solution:
        key = (tuple(sorted(damping.items())), tuple(map(_digest, scales)), by_layer)
        if key not in self._solved:
            self._solved[key] = reference_scores(
                self._pilot, damping, by_layer, self._double, self._solver, scales
            )
        return self._solved[key]


def _digest(scales: Scales) -> str:
    found = hashlib.sha256()
    for sides in scales.sides.values():
        for side in sides:
            found.update(side.cpu().numpy().tobytes())
    return found.hexdigest()


def _row_bytes(run: OpenRun, codec: dict[str, Any]) -> int | None:
    """Return the bytes of one stored row, by the codec's facts or what was asked for."""
    if "code_bytes" in codec:
        return int(codec["code_bytes"] + codec["scale_bytes"])
    return run.method.rows.bytes or None


def _settings(
    others: Others,
) -> list[Setting]:
    """Return the settings asked for, each a change of one thing."""
    for name in others.curvatures:
        member("curvature", name)
    for what, values in (
        ("bytes", others.row_bytes),
        ("width", others.widths),
        ("damping", others.damping),
    ):
        if any(not value > 0 for value in values):
            raise InputError(f"{what} = {min(values):g}; it must be positive")
    return [
        *(Setting(f"{n} bytes", {"rows.bytes": n}) for n in others.row_bytes),
        *(Setting(f"width {n}", {"projection.width": n}) for n in others.widths),
        *(
            Setting(f"curvature {name}", {"curvature.name": name, "curvature.options": {}})
            for name in others.curvatures
        ),
        *(Setting(f"damping {value:g}", {"curvature.damping": value}) for value in others.damping),
    ]


def _refuse(session: Session, sample: int, k: int) -> None:
    """Refuse what cannot be compared, before any work."""
    _ = AtCheckpoint(session, 0).capture  # refuses what is no gradient
    if session.task.likelihood is None:
        raise InputError(
            f"{session.task.name} gives only loss(), which has no output Hessian, so there is no "
            f"Gauss-Newton reference; define likelihood and forward()"
        )
    if sample < max(3, k):
        raise InputError(
            f"a sample of {sample} examples is too small to compare their order and their first {k}"
        )
    if session.run.receipts(decision_stage(0)):
        dampings(decision_facts(session.run, 0))


def _sample_note(pilot: Pilot) -> str:
    """Say which examples the reference's matrix is made of, and which the run's."""
    own, taken = len(sample_rows(pilot.session)), len(pilot.rows)
    if own <= taken:
        return f"the {taken:,} examples that the run's curvature comes from"
    return (
        f"{taken:,} examples, the same as the pilot runs'; the run as stored has its curvature from "
        f"{own:,}, so its row also holds the difference between the samples"
    )


def _kind(by_layer: bool) -> str:
    return "by layer" if by_layer else "joint"
