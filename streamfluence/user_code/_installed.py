"""Which files are of Python itself or of an installed package: all others are a user's own code."""

import os
import site
import sys
import sysconfig
from pathlib import Path

_NAMES = ("site-packages", "dist-packages")  # the second is Debian's


def _places() -> list[Path]:
    """Return the folders of Python and of packages that this process began with, and the program's own."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [*map(sysconfig.get_path, names), site.getusersitepackages()]
    found += [place for place in sys.path if Path(place).name in _NAMES]
    found.append(str(Path(__file__).parents[1]))
    return [Path(p) for each in found for p in {os.path.abspath(each), os.path.realpath(each)}]


PLACES = _places()  # before any code of the user's can add to them


def installed(path: str | Path, folder: Path | None = None) -> bool:
    """Return whether a file is Python's, an installed package's or this program's.

    An editable install is not: its files lie wherever their author works on them.

    Args:
        folder: Of code that is the user's wherever it lies; a virtual environment in it is installed.
    """
    path = Path(os.path.abspath(path))
    within = folder is not None and path.is_relative_to(folder)
    return any(
        path.is_relative_to(place)
        and not (within and folder is not None and not place.is_relative_to(folder))
        for place in PLACES
    )
