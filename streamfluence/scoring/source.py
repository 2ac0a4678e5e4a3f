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
from streamfluence.run.session import open_session
from streamfluence.run.sets import NO_QUERIES
from streamfluence.run.source import DIRECTIONS, ROWS_SOURCE, SOURCE, source_name
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.sources.base import Source, Wanted

FAMILY = "scoring.sources"


def check_source(score: Score) -> None:
    """Raise InputError if there is no such source, or no such solver, scan or option of it."""
    _refuse_unknown(score.source)
    checked("solvers", score.solver, score.solver_options)(**score.solver_options)
    checked("scans", score.scan, score.scan_options)(**score.scan_options)


def pinned_source(run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a score's document that says its source; nothing for stored rows.

    Args:
        before: The document of these scores, where there is one: it says what is not asked for.
    """
    said = before.get(SOURCE, {})
    name = asked.source or said.get("name", ROWS_SOURCE)
    _refuse_unknown(name)
    said = member(FAMILY, name).pinned(run, asked, said if said.get("name") == name else {})
    return {} if name == ROWS_SOURCE else {SOURCE: {"name": name, **said}, PREPARED: [DIRECTIONS]}


def try_source(run: OpenRun, asked: Asked, device: str) -> None:
    """Refuse, before any long work, a source that can make no scores of a run."""
    pinned = pinned_source(run, asked, {})
    if SOURCE in pinned:
        source_member(pinned).refuse(run)
        source_member(pinned).try_out(open_session(run.url, device), pinned[SOURCE])


def open_source(run: OpenRun, device: str, label: str, spec: Mapping[str, Any]) -> Source:
    """Return what makes the scores of a document."""
    return source_member(spec)(run, device, label, spec)


def source_member(spec: Mapping[str, Any]) -> type[Source]:
    """Return the class of the source that a document says."""
    found: type[Source] = member(FAMILY, source_name(spec))
    return found


def label_scores(run: OpenRun, label: str, spec: Mapping[str, Any], partition: int) -> np.ndarray:
    """Return named scores of one partition, made again, ``(example, query)``; NaN where there is none."""
    source, tiles = open_source(run, "cpu", label, spec), []
    for tile in source.tiles():
        blocks = source.blocks(Wanted([partition], ("scores", "columns"), tile))
        tiles.append([np.where(b.valid[:, None], b.scores, np.float32(np.nan)) for b in blocks])
    return np.concatenate([np.concatenate(pieces) for pieces in tiles], axis=1)


def refuse_unfit(
    run: OpenRun,
    example_set: str,
    spec: Mapping[str, Any],
    scale: str,
    damping: float | None = None,
) -> None:
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
    if damping is not None and not member(FAMILY, name).damps:
        raise InputError(f"{where} solves no curvature, so nothing is damped; leave --damping out")
    if not feature_of(run.method).gradients:
        raise InputError(
            f"{where} multiplies gradients, but the feature {run.method.feature.name!r} is none; use "
            "score.source = 'rows'"
        )
    member(FAMILY, name).refuse(run)


def _refuse_unknown(name: str) -> None:
    if name not in names(FAMILY):
        raise InputError(
            f"score.source = {name!r} is not known; there are: {', '.join(names(FAMILY))}"
        )
