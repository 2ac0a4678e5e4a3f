"""The work units of score: read out some partitions of rows, then merge what was read out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from streamfluence.errors import NonFiniteError, StorageError
from streamfluence.layout import result_stage, score_stage
from streamfluence.readouts.base import Arrays, Readout
from streamfluence.run.finished import Bases, read_spec, refuse_changed, task_receipts
from streamfluence.run.opened import OpenRun
from streamfluence.run.readouts import needed, open_readouts
from streamfluence.run.source import of_rows
from streamfluence.scoring import read_out as _read_out
from streamfluence.scoring.named import compressed, name_examples
from streamfluence.scoring.prepare import load_prepared
from streamfluence.scoring.source import open_source
from streamfluence.scoring.sources.base import Source, Wanted
from streamfluence.store import Receipt, array_names
from streamfluence.store.digests import content_digest, document_digest


def score(run_path: str, device: str, name: str, task: int) -> dict[str, int]:
    """Read out one task's partitions and commit its states; return counts for the progress report."""
    run = OpenRun.open(run_path)
    spec = read_spec(run, name)
    bases = Bases(run, name, spec, [task]).of(task)
    readouts = open_readouts(spec["readouts"], run.place.root)
    load_prepared(run, name, spec, readouts)
    source = open_source(run, device, name, spec)
    tiles = source.tiles() if "scores" in needed(readouts.values()) else [(0, 0)]
    read = [_read_tile(source, spec, task, readouts, tile) for tile in tiles]
    counts = [stop - start for start, stop in tiles]
    states = _joined(readouts, [states for states, _, _ in read], counts)
    kept = _joined(readouts, [kept for _, kept, _ in read], counts)
    arrays = {f"state.{key}": array for key, array in _flat(states).items()}
    arrays |= {f"example.{key}": array for key, array in _flat(kept).items()}
    counts_read = {
        "examples": read[0][2].examples,
        "invalid": max(each[2].invalid for each in read),
    }
    compressors = {key: "blosc-bitshuffle-zstd" for key in arrays if key.startswith("example.")}
    if Bases(run, name, spec, [task]).of(task) != bases:
        raise StorageError(
            f"rows of {run.url} were replaced while part {task} of scores {name!r} was made (a repair at "
            f"the same time?); run the same command again"
        )
    facts = {**counts_read, **bases}
    receipt = run.commit(
        score_stage(name), task, arrays, {"score": name}, facts, compressors=compressors
    )
    refuse_changed(run, name, receipt, Bases(run, name, spec, [task]))
    return counts_read


def _read_tile(
    source: Source,
    spec: Mapping[str, Any],
    task: int,
    readouts: Mapping[str, Readout],
    tile: tuple[int, int],
) -> tuple[dict[str, Arrays], dict[str, Arrays], _read_out.ReadOut]:
    """Return the states of one task for some queries, what is stored per example, and the counts."""
    wanted = Wanted(spec["tasks"][task], needed(readouts.values()), tile)
    kept: dict[str, dict[str, list[np.ndarray]]] = {}

    def keep(readout: str, start: int, arrays: Arrays) -> None:
        for key, array in arrays.items():
            kept.setdefault(readout, {}).setdefault(key, []).append(array.copy())

    reading = _read_out.read_out(source.blocks(wanted), readouts, keep)
    whole = {
        readout: {key: np.concatenate(pieces) for key, pieces in arrays.items()}
        for readout, arrays in kept.items()
    }
    return reading.states, whole, reading


def _joined(
    readouts: Mapping[str, Readout], tiles: list[dict[str, Arrays]], counts: list[int]
) -> dict[str, Arrays]:
    """Return what was read out of all queries; nothing where a readout keeps nothing."""
    return {
        name: readouts[name].join([tile[name] for tile in tiles], counts) if first else {}
        for name, first in tiles[0].items()
    }


def merge(run: OpenRun, name: str) -> None:
    """Merge the states of all tasks in their order, and commit the results with the examples they name."""
    spec = read_spec(run, name)
    readouts = open_readouts(spec["readouts"], run.place.root)
    load_prepared(run, name, spec, readouts)
    tasks = task_receipts(run, name, spec)
    merged = _read_out.merge(readouts, (_read_states(run, receipt) for receipt in tasks))
    results = {key: readouts[key].finalize(state) for key, state in merged.states.items() if state}
    if not of_rows(spec):
        _refuse_many_invalid(run, merged)
    examples, notes = name_examples(run, name, spec, readouts, results)
    facts = {
        "examples": merged.examples,
        "invalid": merged.invalid,
        "score": document_digest(spec),
        "tasks": content_digest(tasks),
        **notes,
    }
    arrays = _flat(results) | examples
    run.commit(result_stage(name), 0, arrays, {"score": name}, facts, compressed(arrays))


def _refuse_many_invalid(run: OpenRun, merged: _read_out.ReadOut) -> None:
    """Refuse scores of which too many are not finite; of stored rows that was refused before."""
    limit = run.method.rows.max_non_finite
    if merged.invalid > limit * merged.examples:
        raise NonFiniteError(
            f"{merged.invalid:,} of {merged.examples:,} training examples of {run.url} have NaN or infinite "
            f"scores, more than rows.max_non_finite = {limit:g}; repair the data or the model, or raise "
            "the limit"
        )


def _read_states(run: OpenRun, receipt: Receipt) -> _read_out.ReadOut:
    states: dict[str, Arrays] = {}
    for name in array_names(receipt):
        kind, _, rest = name.partition(".")
        if kind == "state":
            readout, _, key = rest.partition(".")
            states.setdefault(readout, {})[key] = run.read(receipt, name)
    return _read_out.ReadOut(states, receipt.facts["examples"], receipt.facts["invalid"])


def _flat(states: Mapping[str, Arrays]) -> Arrays:
    return {
        f"{readout}.{key}": array
        for readout, state in states.items()
        for key, array in state.items()
    }
