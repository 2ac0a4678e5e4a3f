"""The one door to the terminal: text that comes from data can do nothing there.

Group names, paths and previews come from whoever made the data. A control character in
one could move the cursor, retitle the window or hide a line; characters of direction
could make a line read as another. Each is shown as the escape that Python writes for it.
"""

import errno
import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any

import click

from streamfluence.errors import StorageError

# Controls, formats (direction, invisible joiners, tags), lone surrogates, line and paragraph ends.
_ACTIVE = frozenset(["Cc", "Cf", "Cs", "Zl", "Zp"])


def clean(text: str) -> str:
    """Return ``text`` as one line in which every character is only itself."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def say(text: str, stream: Any = None) -> None:
    """Print one line of a message on stderr (or ``stream``); quiet where it cannot be written."""
    with suppress(OSError):
        _write(clean(text), stream or sys.stderr)


def say_lines(text: str) -> None:
    """Print a text of ours that has several lines on stderr, each made harmless."""
    for line in text.splitlines():
        say(line)


def put(text: str) -> None:
    """Print a result on stdout, in lines that are clean already; quiet when its reader has gone.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        _write(text, sys.stdout)
    except OSError as error:
        raise unwritten(error) from error


def unwritten(error: OSError) -> StorageError:
    """Return what it means that stdout could not be written to."""
    return StorageError(f"cannot write the result to stdout: {error.strerror or error}")


def _shown(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if unicodedata.category(character) in _ACTIVE:
        return character.encode("unicode_escape").decode()
    return character


def _write(text: str, stream: Any) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text, file=stream)
        stream.flush()
    except OSError as error:
        forget(stream)
        if error.errno not in (errno.EPIPE, errno.EINVAL):
            raise


def forget(stream: Any) -> None:
    """Send what is still written to a stream to nowhere.

    `streamfluence top ... | head`: the reader has all it wants. Python flushes its streams once
    more when it ends, which must not fail either.
    """
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, AttributeError, ValueError):  # a stream that is no file holds nothing back
        return
