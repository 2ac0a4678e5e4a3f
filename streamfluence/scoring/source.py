"""Which source the scores of a run are made by: asked for, checked, pinned with them, opened again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.job import Score
from streamfluence.options import checked
from streamfluence.registry import member, names
from streamfluence.run.feature import feature_of
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import PREPARED
from streamfluence.run.readouts import needed, open_readouts
from streamfluence.run.sets import NO_QUERIES
from streamfluence.run.source import DIRECTIONS, ROWS_SOURCE, SOURCE, source_name
from streamfluence.run.unprojected import CURVATURES
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.sources.base import Source, Wanted

FAMILY = "scoring.sources"


def check_source(score: Score) -> None:
    """Raise InputError if there is no such source, or no such solver or option of it."""
    _refuse_unknown(score.source)
    checked("solvers", score.solver, score.solver_options)(**score.solver_options)


def pinned_source(run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a score's document that says its source; nothing for stored rows.

    Args:
        before: The document of these scores, where there is one: it says what is not asked for.
    """
    said = before.get(SOURCE, {})
    name = asked.source or said.get("name", ROWS_SOURCE)
    _refuse_unknown(name)
    if name == ROWS_SOURCE:
        _refuse_solver(asked)
        return {}
    solver = asked.solver or said.get("solver", Score.solver)
    options = dict(asked.solver_options or said.get("options", {}))
    checked("solvers", solver, options)(**options)
    return {
        SOURCE: {"name": name, "solver": solver, "options": options},
        PREPARED: [DIRECTIONS],
    }


def open_source(run: OpenRun, device: str, label: str, spec: Mapping[str, Any]) -> Source:
    """Return what makes the scores of a document."""
    source: Source = member(FAMILY, source_name(spec))(run, device, label, spec)
    return source


def label_scores(run: OpenRun, label: str, spec: Mapping[str, Any], partition: int) -> np.ndarray:
    """Return named scores of one partition, made again, ``(example, query)``; NaN where there is none."""
    source, tiles = open_source(run, "cpu", label, spec), []
    for tile in source.tiles():
        blocks = source.blocks(Wanted([partition], ("scores", "columns"), tile))
        tiles.append([np.where(b.valid[:, None], b.scores, np.float32(np.nan)) for b in blocks])
    return np.concatenate([np.concatenate(pieces) for pieces in tiles], axis=1)


def refuse_unfit(run: OpenRun, example_set: str, spec: Mapping[str, Any], scale: str) -> None:
    """Refuse what a source that reads no rows cannot do of a run.

    Args:
        spec: Its readouts and its source.
    """
    name = source_name(spec)
    gives = member(FAMILY, name).gives
    for readout, opened in open_readouts(spec["readouts"], run.place.root).items():
        lacking = sorted(needed([opened]) - set(gives))
        if lacking:
            raise InputError(
                f"the readout {readout!r} needs {lacking[0].replace('_', '-')} of stored rows, and "
                f"score.source = {name!r} has none; leave it out, or use score.source = 'rows'"
            )
    if name == ROWS_SOURCE:
        return
    where = f"score.source = {name!r}"
    if example_set == NO_QUERIES:
        raise InputError(
            f"{where} multiplies with queries, and {run.url} has none; add [queries.NAME]"
        )
    if scale != "none":
        raise InputError(
            f"the scale {scale!r} is made of what is stored with rows, and {where} stores none; leave "
            "it out, or use score.source = 'rows'"
        )
    if not feature_of(run.method).gradients:
        raise InputError(
            f"{where} multiplies gradients, but the feature {run.method.feature.name!r} is none; use "
            "score.source = 'rows'"
        )
    curvature = run.method.curvature.name
    if curvature not in CURVATURES:
        raise InputError(
            f"{where} needs products with the curvature, which {curvature!r} has none of; use one of "
            f"{', '.join(CURVATURES)}, or score.source = 'rows'"
        )


def _refuse_unknown(name: str) -> None:
    if name not in names(FAMILY):
        raise InputError(
            f"score.source = {name!r} is not known; there are: {', '.join(names(FAMILY))}"
        )


def _refuse_solver(asked: Asked) -> None:
    """Refuse a solver where nothing is solved; a job always names one."""
    if asked.solver_options:
        raise InputError(
            "solver_options are of score.source = 'streamed'; stored rows are whitened already, so "
            "leave them out"
        )
