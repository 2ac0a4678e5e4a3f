"""Read the TOML of a job, within the bounds of what a job can be.

A job may come from anybody. What would make a parser work for minutes, run out of stack
or hand on a value that nothing can use is refused in one sentence before that.
"""

import datetime
import math
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError

MOST_BYTES = 1 << 20
_DEEPEST = 16  # tables in tables; a job has three
_LARGEST = 2**63
_MOST = 1e300
# tomllib takes time with the square of a dotted key's length: two minutes for 100 kB.
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{32}}")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table of a job file.

    Raises:
        InputError: If it cannot be read, is not TOML, or holds what no job can mean.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"job {path} is not a file; name the TOML file of a job")
        if found.st_size > MOST_BYTES:
            raise InputError(
                f"job {path} has {found.st_size:,} bytes; a job has at most {MOST_BYTES:,}, so name "
                "data by its files and not in the job"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"job {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a name that no file can have
        raise InputError(f"job {path} is not valid TOML: {error}") from error
    if _LONG_KEY.search(text):
        raise InputError(
            f"job {path} has a key of more than 32 parts; a job has none of more than 3"
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"job {path} is nested too deeply to be a job") from None
    except ValueError as error:  # also a whole number of thousands of digits
        raise InputError(f"job {path} is not valid TOML: {str(error).partition(';')[0]}") from error


def check_values(table: dict[str, Any]) -> None:
    """Raise InputError for a value anywhere in a job that nothing can use; names its key."""
    layer: list[tuple[str, Any]] = list(table.items())
    for _ in range(_DEEPEST):
        inner: list[tuple[str, Any]] = []
        for key, value in layer:
            if isinstance(value, dict):
                inner += [(f"{key}.{name}", item) for name, item in value.items()]
            elif isinstance(value, list | tuple):
                inner += [(key, item) for item in value]
            else:
                _check_value(key, value)
        layer = inner
        if not layer:
            return
    raise InputError(f"{layer[0][0][:60]} is nested too deeply to be part of a job")


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise InputError(f"{key} is a whole number of more than 64 bits; give a smaller one")
    if isinstance(value, float) and abs(value) >= _MOST and not math.isinf(value):
        raise InputError(f"{key} = {value:g} is larger than any number of a job ({_MOST:g})")
    if isinstance(value, datetime.date | datetime.time):
        raise InputError(f"{key} = {value} is a date or time, which a job has no use for; quote it")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{key} holds a NUL character, which no name or path can have")
