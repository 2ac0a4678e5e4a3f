"""Write a task and a job to start from: a commented skeleton, or a worked example."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

from streamfluence.errors import InputError
from streamfluence.new_file import failed, new_file

EXAMPLES = ("digits", "code")


class Starting(Protocol):
    """Something that a job can be made for: ``starting.start.Start``."""

    def files(self, directory: Path) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the text of every file by name, and what was found out."""


def init(
    directory: str | Path, example: str | None = None, start: Starting | None = None
) -> dict[str, Any]:
    """Write the skeleton, an example or a job into ``directory``; existing files are never overwritten.

    Args:
        example: Name of a worked example.
        start: A saved model with its data, for which the job is made.

    Raises:
        InputError: If the example is unknown, the model or the data cannot be used, or a file is
            already there.
    """
    if example is not None and example not in EXAMPLES:
        raise InputError(f"there is no example {example!r}; there are: {', '.join(EXAMPLES)}")
    if example is not None and start is not None:
        raise InputError("name an example, or a model of your own, but not both")
    target = Path(directory)
    contents, facts = _copied(example) if start is None else start.files(target)
    taken = [name for name in contents if os.path.lexists(target / name)]
    if taken:
        raise InputError(f"{target / taken[0]} exists already; name an empty folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{target} is or lies in what is no folder; name another") from error
    except OSError as error:
        raise failed(target, error) from error
    for name, content in contents.items():
        with new_file(target / name) as written:
            written.write_text(content, encoding="utf-8")
    return {"directory": str(target), "files": list(contents), **facts}


def _copied(example: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    with as_file(_source(example)) as source:
        paths = [path for path in source.iterdir() if path.is_file() and path.suffix != ".pyc"]
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(paths)}, {}


def _source(example: str | None) -> Any:
    package = files("streamfluence")
    if example is None:
        return package / "templates"
    installed = package / "_examples" / example
    if installed.is_dir():
        return installed
    return Path(str(package)).parent / "examples" / example  # an editable install
