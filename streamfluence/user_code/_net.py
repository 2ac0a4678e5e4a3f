"""What runs a file without importing it is held to the same digests.

A module can be made of any path (``importlib.util``, ``runpy``, ``exec(compile(...))``), or be
imported by a library that was told its name. Python tells of every module's code before it
runs; where the user's code is behind that, or put the folder on ``sys.path``, the file is one
of its files. So are the sources that it read before it runs a text.
"""

import __future__

import os
import sys
import threading
from pathlib import Path
from types import CodeType
from typing import Any

from streamfluence.errors import InputError
from streamfluence.user_code._code import Code, loads
from streamfluence.user_code._installed import installed
from streamfluence.user_code._loader import compiled, owner

_COMPILERS = ("torch._inductor", "triton", "jinja2")  # they run what they have written themselves
_FUTURE = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
_READERS = ("pathlib", "io", "codecs", "tokenize", "linecache", "inspect")
_MOST_READ = 20
_read = threading.local()  # in ``files``, the sources that were read since text was last run
_installed: list[bool] = []


def install() -> None:
    """Watch this process from now on; once."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "exec" and isinstance(arguments[0], CodeType):
        _judge(arguments[0])
    elif event == "open" and isinstance(arguments[0], str | os.PathLike):
        name = os.fspath(arguments[0])
        if isinstance(name, str) and name.endswith(".py"):
            _remember(Path(name).absolute())


def _remember(path: Path) -> None:
    """Keep in mind that the user's code reads a source, which it may run as text."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in _READERS:
        frame = frame.f_back
    if frame is not None and (reading := owner(frame)) is not None:
        _read.files = [*getattr(_read, "files", [])[-_MOST_READ:], (reading, path)]


def _judge(code: CodeType) -> None:
    """Refuse to run what is not as it was promised, or note it."""
    if compiled.pop(id(code), None) is code:
        return
    if code.co_filename.startswith("<"):
        _judge_text()
        return
    path = Path(code.co_filename).absolute()
    if not any(each.is_file() for each in (path, *path.parents)) or installed(path):
        return
    for behind in _behind(path):
        _check(behind, path, code)


def _judge_text() -> None:
    """Take what the user's code has read for what it runs now, as in ``exec(open(path).read())``."""
    running, files = owner(sys._getframe(3)), getattr(_read, "files", [])
    if running is None or not files:
        return
    _read.files = [each for each in files if each[0] is not running]
    for reading, path in files:
        if reading is running and not installed(path):
            running.digested(path)


def _behind(path: Path) -> list[Code]:
    """Return the code that has a file run: the outermost that runs, or whoever made it importable."""
    found, frame = None, sys._getframe(3)
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
