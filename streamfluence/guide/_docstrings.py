"""Read docstrings: paragraphs, and sections such as ``Args:`` with one entry a name."""

import inspect
import re
from collections.abc import Sequence

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Source):")
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs outside of sections, each on one line, as Markdown."""
    outside, inside = [], False
    for line in inspect.cleandoc(docstring).splitlines():
        inside = bool(_SECTION.fullmatch(line)) or (inside and (not line or line[0] == " "))
        if not inside:
            outside.append(line)
    blocks = "\n".join(outside).split("\n\n")
    return [one_line(block.splitlines()) for block in blocks if block.strip()]


def entries(docstring: str, section: str) -> dict[str, str]:
    """Return what a section says of each name, as Markdown; ``a, b: text`` says it of both."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in _lines(docstring, section):
        head = None if line.startswith(" ") else _ENTRY.fullmatch(line)
        if head:
            names = head[1].split(", ")
            found |= {name: [] for name in names}
        for name in names:
            found[name].append(head[2] if head else line)
    return {name: one_line(lines) for name, lines in found.items()}


def section(docstring: str, name: str) -> str:
    """Return the text of a section on one line, as Markdown; empty when there is none."""
    return one_line(_lines(docstring, name))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def one_line(lines: Sequence[str]) -> str:
    """Return lines as one line of Markdown, which has one backtick where docstrings have two."""
    return " ".join(line.strip() for line in lines).strip().replace("``", "`")


def _lines(docstring: str, section: str) -> list[str]:
    """Return the lines of a section without its indent."""
    lines = inspect.cleandoc(docstring).splitlines()
    if f"{section}:" not in lines:
        return []
    body = []
    for line in lines[lines.index(f"{section}:") + 1 :]:
        if line and line[0] != " ":
            break
        body.append(line)
    return inspect.cleandoc("\n" + "\n".join(body)).splitlines()
