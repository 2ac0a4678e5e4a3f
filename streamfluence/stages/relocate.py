"""Say where task, checkpoints and data of a run lie, once what lies there was found to be the same.

Nothing that a run stores rests on where that is. No code is run: data that only code of the user's
can read is compared by the digests of that code, and by what it holds when rows are computed next.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamfluence.data import places_of
from streamfluence.data.base import Reader
from streamfluence.errors import DamageError, InputError
from streamfluence.registry import member
from streamfluence.run.checkpoints import refuse_other_checkpoint
from streamfluence.run.identity import pinned_reader
from streamfluence.run.opened import OpenRun
from streamfluence.run.place import Place
from streamfluence.task_file import refuse_other_task
from streamfluence.user_code import compare


def relocate(
    run_path: str,
    root: str | None = None,
    task: str | None = None,
    checkpoints: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Replace the place of a run; what is not given stays as it is.

    Args:
        root: Folder that relative paths resolve against.
        checkpoints: All of them, in order.
        data: Options of readers that are paths, by ``SET.OPTION``; of a later generation by
            ``SET.NUMBER.OPTION``.

    Returns:
        The place, as it is now.

    Raises:
        InputError: If something that lies there is not what the run was made of.
    """
    run = OpenRun.open(run_path)
    place = _asked(run, root, task, checkpoints)
    for key, value in (data or {}).items():
        place = replace(place, data=_with(run, place, key, value))
    _refuse_others(run, place)
    run.move_to(place)
    return {"run": run_path, **place.content()}


def _asked(run: OpenRun, root: str | None, task: str | None, checkpoints: Sequence[str]) -> Place:
    """Return the place that is asked for, with what is known of it."""
    known = None
    with suppress(InputError, DamageError):  # then all of it has to be given
        known = run.place
    wanted = len(run.checkpoints)
    if checkpoints and len(checkpoints) != wanted:
        raise InputError(
            f"{run.url} has {wanted} checkpoints; give --checkpoint for each, in order"
        )
    if known is None and not (root and task and checkpoints):
        raise InputError(
            f"{run.url} does not say where its things lie; repeat `streamfluence run` with the job, or give "
            f"--root, --task, every --checkpoint, and --data"
        )
    place = known or Place(Path(), "", (), {})
    return Place(
        Path(root or place.root).resolve(),
        task or place.task,
        tuple(checkpoints) or place.checkpoints,
        place.data,
    )


def _with(run: OpenRun, place: Place, key: str, value: Any) -> dict[str, list[Mapping[str, Any]]]:
    """Return where data lies, one option of one generation as given."""
    name, *number, option = key.split(".")
    generations = run.example_set(name).generations
    chosen = int(number[0]) if number and number[0].isdecimal() else 0
    known = places_of(generations[0].table)
    if len(number) > 1 or chosen >= len(generations) or option not in known:
        raise InputError(
            f"--data {key}: give SET.OPTION with one of the options {', '.join(known) or 'that there are'}, "
            f"and of a later generation SET.NUMBER.OPTION up to {name}.{len(generations) - 1}"
        )
    tables: list[Mapping[str, Any]] = [{} for _ in generations]
    tables[: len(place.data.get(name, []))] = place.data.get(name, [])
    tables[chosen] = {**tables[chosen], option: value}
    return {**place.data, name: tables}


def _refuse_others(run: OpenRun, place: Place) -> None:
    """Raise InputError where something else lies than the run was made of."""
    if not place.root.is_dir():
        raise InputError(f"--root {place.root} is no folder")
    refuse_other_task(place.task, place.root, run.method.task_files)
    for checkpoint in run.checkpoints:
        path = place.root / place.checkpoints[checkpoint]
        refuse_other_checkpoint(run, checkpoint, path)
    for name in run.example_sets():
        generations = run.example_set(name).generations
        if any(_needs_code(generation.table) for generation in generations):
            for generation in generations:
                compare(generation.code, place.root)
        else:
            pinned_reader(run, name, place)


def _needs_code(table: Mapping[str, Any]) -> bool:
    """Return whether a reader loads code of the user's."""
    return member("data", table["reader"]).code is not Reader.code
