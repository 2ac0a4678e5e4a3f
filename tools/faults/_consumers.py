"""Everything that reads numbers out of a run, as functions from its folder to what is compared.

Each is asked with no memory of the one before: whatever the library keeps in a process is
forgotten in between, as it would be between two commands.
"""

import csv
import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from _finished import CHECKPOINTS, DAMPING, QUERY_SETS, SERIAL, SETS, several_tasks

import streamfluence
from streamfluence.errors import StreamfluenceError
from streamfluence.scoring.asked import Asked
from streamfluence.stages.export import export
from streamfluence.stages.finalise import finalise
from streamfluence.stages.score import score
from streamfluence.stages.status import status
from streamfluence.stages.top import top

Consumer = Callable[[str], Any]
RESULTS = (*QUERY_SETS, f"asked-damping-{DAMPING:g}")
REFUSALS = (2, 3, 4, 5, 74)


@dataclass(frozen=True)
class Answer:
    """What a consumer did.

    Attributes:
        kind: ``value``, ``refused`` or ``traceback``.
        value: What it gave, or the message.
        code: Exit code of a refusal.
    """

    kind: str
    value: Any
    code: int = 0


def ask(consumer: Consumer, run: Path) -> Answer:
    """Return what a consumer makes of a run, in a process that knows nothing of it."""
    forget()
    try:
        return Answer("value", _anywhere(consumer(str(run)), str(run)))
    except StreamfluenceError as error:
        kind = "refused" if error.exit_code in REFUSALS else "traceback"
        return Answer(kind, str(error), error.exit_code)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Answer("traceback", f"{type(error).__name__} at {where}: {str(error)[:200]}")


def forget() -> None:
    """Empty every cache of the library."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "streamfluence":
            for member in list(vars(module).values()):
                if callable(getattr(member, "cache_clear", None)):
                    member.cache_clear()
    gc.collect(0)


def same(one: Any, other: Any) -> bool:
    """Return whether two answers are equal to the bit; NaN equals NaN."""
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping)
            and one.keys() == other.keys()
            and all(same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return equal and one.tobytes() == other.tobytes()
    return one == other or (one != one and other != other)


def _anywhere(value: Any, path: str) -> Any:
    """Return a value without the place where the run lies."""
    if isinstance(value, Mapping):
        return {key: _anywhere(item, path) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_anywhere(item, path) for item in value]
    return value.replace(path, "RUN") if isinstance(value, str) else value


def _top(run: str) -> Any:
    places: list[tuple[str, str | None]] = [
        (f"{name}/{query}", None) for name in QUERY_SETS for query in (0, 17)
    ]
    places.append(("3", RESULTS[2]))
    return [top(run, query, k=3, name=name) for query, name in places]


def _export(run: str) -> Any:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RESULTS:
            target = Path(folder) / f"{name}.jsonl"
            export(run, str(target), name=name)
            lines = target.read_text().splitlines()
            found[name] = [json.loads(line) for line in lines]
        target = Path(folder) / "one.csv"
        export(run, str(target), name=QUERY_SETS[0])
        found["csv"] = list(csv.reader(target.open()))
    return found


def _results(run: str) -> Any:
    opened = streamfluence.open(run)
    return {name: _computed(opened.results(name)) for name in RESULTS}


def _scores(run: str) -> Any:
    opened = streamfluence.open(run)
    found = {name: _computed(opened.scores(name)) for name in QUERY_SETS}
    found["another damping"] = _computed(opened.scores("asked", damping=DAMPING))
    return found


def _rows(run: str) -> Any:
    opened = streamfluence.open(run)
    return {
        f"{name} {checkpoint}": _computed(opened.rows(name, checkpoint))
        for name in SETS
        for checkpoint in range(CHECKPOINTS)
    }


def _score_again(run: str) -> Any:
    """Score under a damping that the run has no result of."""
    with several_tasks():
        score(run, ["other"], 3 * DAMPING, Asked(["top_k", "dense"], 4), execution=SERIAL)
    return _computed(streamfluence.open(run).results(f"other-damping-{3 * DAMPING:g}"))


def _finalise(run: str) -> Any:
    for name in SETS:
        finalise(run, name)
    try:
        return arrays_of_sets(run)
    except Exception as error:  # Zarr's own checksums found what finalise had called finished
        return {"published, and cannot be read": f"{type(error).__name__}: {error}"}


def arrays_of_sets(run: str) -> Any:
    """Return what a reader that knows only Zarr finds in ``sets/``."""
    found = {}
    for name in SETS:
        group = zarr.open_group(f"{run}/sets/{name}.zarr", mode="r")
        found[name] = {key: np.asarray(array[...]) for key, array in group.arrays()}
    return found


def _status(run: str) -> Any:
    return status(run)


READERS: dict[str, Consumer] = {
    "top": _top,
    "export": _export,
    "results": _results,
    "scores": _scores,
    "rows": _rows,
    "status": _status,
}
WRITERS: dict[str, Consumer] = {"score": _score_again, "finalise": _finalise}


def _computed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _computed(item) for key, item in value.items()}
    if hasattr(value, "compute"):
        return np.asarray(value.compute(scheduler="synchronous"))
    return value
