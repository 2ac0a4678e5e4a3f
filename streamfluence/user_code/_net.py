"""What runs a file without importing it is held to the same digests.

A module can be made of any path (``importlib.util``, ``runpy``, ``exec(compile(...))``), or be
imported by a library that was told its name. Python tells of every module's code before it
runs; where the user's code is behind that, or put the folder on ``sys.path``, the file is one
of its files.
"""

import __future__

import sys
from pathlib import Path
from types import CodeType
from typing import Any

from streamfluence.errors import InputError
from streamfluence.user_code._code import Code, loads
from streamfluence.user_code._installed import installed
from streamfluence.user_code._loader import compiled, owner

_COMPILERS = ("torch._inductor", "triton", "jinja2")  # they run what they have written themselves
_FUTURE = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
_installed: list[bool] = []


def install() -> None:
    """Watch this process from now on; once."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "exec" or not isinstance(arguments[0], CodeType):
        return
    code = arguments[0]
    if compiled.pop(id(code), None) is code or code.co_filename.startswith("<"):
        return
    path = Path(code.co_filename).absolute()
    if not any(each.is_file() for each in (path, *path.parents)) or installed(path):
        return
    for behind in _behind(path):
        _check(behind, path, code)


def _behind(path: Path) -> list[Code]:
    """Return the code that has a file run: the outermost that runs, or whoever made it importable."""
    found, frame = None, sys._getframe(2)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_COMPILERS):
            return []
        found = owner(frame) or found
        frame = frame.f_back  # type: ignore[assignment]
    if found is not None:
        return [found]
    return [each for each in loads if any(path.is_relative_to(place) for place in each.added)]


def _check(behind: Code, path: Path, code: CodeType) -> None:
    source = behind.digested(path)
    if not path.is_file():
        return  # in an archive
    flags = code.co_flags & _FUTURE
    if compile(source, str(path), "exec", flags, dont_inherit=True) != code:
        raise InputError(
            f"{path} would be run as other code than the file holds; remove the compiled caches "
            f"(__pycache__) beside it, or import it"
        )
