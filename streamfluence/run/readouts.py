"""The readouts of a score: their options checked and pinned, then opened of what was pinned."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.options import checked
from streamfluence.readouts.base import NEEDS, Readout
from streamfluence.registry import member


def pin_readouts(
    asked: Mapping[str, Mapping[str, Any]], root: Path, examples: int
) -> dict[str, dict[str, Any]]:
    """Return the options of each readout as a score stores them, after opening it once.

    Args:
        asked: Readout name to options.
        root: The job's folder.
        examples: Of the training set.

    Raises:
        InputError: If a readout or an option is unknown, or cannot be used.
    """
    found = {}
    for name, options in asked.items():
        checked("readouts", name, options)
        found[name] = member("readouts", name).pinned(options, root, examples)
    open_readouts(found, root)
    return found


def open_readouts(pinned: Mapping[str, Mapping[str, Any]], root: Path) -> dict[str, Readout]:
    """Return readouts of their pinned options, by name."""
    found = {name: _readout(name, options, root) for name, options in pinned.items()}
    for name, readout in found.items():
        unknown = set(_needs(readout)) - set(NEEDS)
        if unknown:
            raise InputError(
                f"the readout {name!r} needs {sorted(unknown)[0]!r}; it can need {', '.join(NEEDS)}"
            )
    return found


def _readout(name: str, options: Mapping[str, Any], root: Path) -> Readout:
    """Return one readout; what is pinned may be a document of somebody else's."""
    try:
        readout: Readout = member("readouts", name).from_pinned(options, root)
        return readout
    except (TypeError, KeyError) as error:
        raise InputError(
            f"the readout {name!r} cannot be made of the options {dict(options)}: {error}"
        ) from error


def needed(readouts: Iterable[Readout | type[Readout]]) -> set[str]:
    """Return what of a block any of the readouts reads."""
    return {need for readout in readouts for need in _needs(readout)}


def _needs(readout: Readout | type[Readout]) -> Iterable[str]:
    return (readout.needs,) if isinstance(readout.needs, str) else readout.needs
