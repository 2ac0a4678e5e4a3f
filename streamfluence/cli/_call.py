"""The one way from a command to its stage: imported when called, because torch comes with it."""

from importlib import import_module
from typing import Any

from streamfluence.cli._progress import progress


def call(stage: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return what a verb returns: of ``evaluate.lds``, the function ``evaluate_lds`` of that module."""
    function = getattr(import_module(f"streamfluence.stages.{stage}"), stage.replace(".", "_"))
    result: dict[str, Any] = function(*arguments, **options)
    return result


def call_watched(stage: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Call a stage that takes long, showing its progress."""
    with progress() as shown:
        return call(stage, *arguments, progress=shown, **options)


def grouped(place: str, given: dict[str, Any], *names: str) -> Any:
    """Return the library's class at ``module.Class``, made of what the user gave under these names."""
    module, _, kind = place.rpartition(".")
    found = {name: given.pop(name) for name in names}
    return getattr(import_module(f"streamfluence.{module}"), kind)(**found)


def execution(how: dict[str, Any]) -> Any:
    """Return the library's description of how to run tasks, made of what the user gave."""
    options = dict(how)
    if "memory" in options:
        options["memory"] = import_module("streamfluence.budget").parse_size(options["memory"])
    made = import_module("streamfluence.execution").Execution(**options)
    made.check()
    return made
