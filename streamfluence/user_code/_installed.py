"""Which files are of Python itself or of an installed package: all others are a user's own code."""

import os
import site
import sysconfig
from functools import cache
from pathlib import Path

_FOLDERS = frozenset(["site-packages", "dist-packages"])


def installed(path: str | Path, folder: Path | None = None) -> bool:
    """Return whether a file is Python's, an installed package's or this program's.

    An editable install is not: its files lie wherever their author works on them.

    Args:
        folder: Of code that is the user's wherever it lies; a virtual environment in it is installed.
    """
    path = Path(os.path.abspath(path))
    within = folder is not None and path.is_relative_to(folder)
    places = [*_places(), *(parent for parent in path.parents if parent.name in _FOLDERS)]
    return any(
        path.is_relative_to(place)
        and not (within and folder is not None and not place.is_relative_to(folder))
        for place in places
    )


@cache
def _places() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [*map(sysconfig.get_path, names), site.getusersitepackages()]
    found.append(str(Path(__file__).parents[1]))
    return tuple(Path(p) for each in found for p in {each, os.path.realpath(each)})
