"""Write a task and a job to start from: a commented skeleton, or a worked example."""

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.new_file import failed, new_file

EXAMPLES = ("digits", "code")


def init(directory: str | Path, example: str | None = None) -> dict[str, Any]:
    """Copy the skeleton or an example into ``directory``; existing files are never overwritten.

    Raises:
        InputError: If the example is unknown, or a file is already there.
    """
    if example is not None and example not in EXAMPLES:
        raise InputError(f"there is no example {example!r}; there are: {', '.join(EXAMPLES)}")
    target = Path(directory)
    with as_file(_source(example)) as source:
        names = sorted(p.name for p in source.iterdir() if p.is_file() and p.suffix != ".pyc")
        taken = [name for name in names if os.path.lexists(target / name)]
        if taken:
            raise InputError(f"{target / taken[0]} exists already; name an empty folder")
        try:
            target.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{target} is or lies in what is no folder; name another") from error
        except OSError as error:
            raise failed(target, error) from error
        for name in names:
            with new_file(target / name) as written:
                shutil.copyfile(source / name, written)
    return {"directory": str(target), "files": names}


def _source(example: str | None) -> Any:
    package = files("streamfluence")
    if example is None:
        return package / "templates"
    installed = package / "_examples" / example
    if installed.is_dir():
        return installed
    return Path(str(package)).parent / "examples" / example  # an editable install
