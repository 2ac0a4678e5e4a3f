"""Check what is stored against its receipts and listings, and whether all of it is there."""

from dataclasses import dataclass
from typing import Any

from streamfluence.errors import DamageError, IncompleteError, InputError
from streamfluence.layout import RECEIPTS
from streamfluence.run.opened import OpenRun
from streamfluence.run.survey import survey
from streamfluence.run.turn import next_turn
from streamfluence.store import ANYTHING, Problem

SHOWN = 5  # damaged things that the message names
SAMPLE = 0.05  # share of stored objects whose bytes a sampled check reads


def verify(
    run_path: str, full: bool = False, fraction: float | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Check structure always, and the bytes of a share of the objects, or of all with ``full``.

    Args:
        fraction: Share of the objects; as many calls as it goes into one read every object.
        seed: Which share; by default the one after the last call's.

    Returns:
        What was looked at and what of it was read, in objects and bytes, and which share it was.

    Raises:
        DamageError: If anything is damaged, lost, or does not belong to the rest; lists the first.
        IncompleteError: If nothing is, but partitions that were begun are not there yet.
    """
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: shares are counted from 0")
    run = OpenRun.open(run_path, ANYTHING)
    run.refuse_doubtful_manifest()
    share = 1.0 if full else fraction or SAMPLE
    turn = 0 if share >= 1 else next_turn(run) if seed is None else seed
    there, read = _Count(), _Count()
    problems = run.verify(fraction=share, seed=turn, checked=read.add, there=there.add)
    found = survey(run)
    problems += found.problems
    turns = max(1, int(1 / share))
    if problems:
        raise DamageError(
            f"{run_path}: {described(problems)}; `streamfluence repair` makes again what it can"
        )
    if found.missing:
        raise IncompleteError(
            f"{run_path}: nothing is damaged ({read.bytes:,} of {there.bytes:,} bytes were read), but "
            f"{missing(found.missing)}; `streamfluence run` goes on, and lists nothing twice"
        )
    return {
        "run": run_path,
        "contents_checked": share,
        "turn": turn % turns + 1,
        "turns": turns,
        "objects": there.objects,
        "objects_read": read.objects,
        "stored_bytes": there.bytes,
        "read_bytes": read.bytes,
        "problems": [],
    }


def described(problems: list[Problem]) -> str:
    """Return the first few problems in words, one for each partition or document."""
    first = {_key(problem): problem for problem in reversed(problems)}
    lines = [_line(first[key]) for key in sorted(first)]
    more = f" (and {len(lines) - SHOWN} more)" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def missing(stages: dict[str, list[int]]) -> str:
    """Return what is missing in words."""
    words = [
        f"{len(partitions):,} of {stage} ({', '.join(map(str, partitions[:5]))}"
        f"{', ...' if len(partitions) > 5 else ''})"
        for stage, partitions in sorted(stages.items())
    ]
    more = f" and of {len(words) - SHOWN} more stages" if len(words) > SHOWN else ""
    return f"partitions are missing: {', '.join(words[:SHOWN])}{more}"


def _key(problem: Problem) -> tuple[str, int, str]:
    return problem.stage, problem.partition, "" if problem.partition >= 0 else problem.object


def _line(problem: Problem) -> str:
    """Return the first thing that is wrong with a partition, without the advice given once for all."""
    if problem.partition < 0:
        named = problem.object in problem.what  # a message of its own, advice and all
        return problem.what if named else f"{problem.object} {problem.what}"
    what = problem.what.removeprefix("receipt ").partition("; ")[0]
    place = "" if problem.object.startswith(f"{RECEIPTS}/") else f"{problem.object} "
    return f"{problem.stage} partition {problem.partition}: {place}{what}"


@dataclass
class _Count:
    objects: int = 0
    bytes: int = 0

    def add(self, path: str, length: int) -> None:
        self.objects += 1
        self.bytes += length
