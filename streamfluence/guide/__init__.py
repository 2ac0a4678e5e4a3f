"""The pages that ``streamfluence guide`` prints: Markdown in this folder, some parts of it generated.

A page can be read where it lies. What it says of keys and members is made again from the code
when it is printed, so it names plug-ins too; a test compares what lies here with the code.
"""

import difflib
from importlib.resources import files

from streamfluence.errors import InputError
from streamfluence.guide._fill import filled

PAGES = ("concepts", "job", "readers", "methods", "operations", "python")


def titles() -> dict[str, str]:
    """Return the title of every page by its name, in the order in which they are best read."""
    return {name: stored(name).partition("\n")[0].removeprefix("# ") for name in PAGES}


def page(name: str) -> str:
    """Return a page as Markdown, its generated parts made now.

    Raises:
        InputError: If there is no such page; the message has the nearest name.
    """
    if name not in PAGES:
        near = difflib.get_close_matches(name.lower(), PAGES, 1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PAGES)}"
        raise InputError(f"the guide has no page {name!r}; {hint}")
    return filled(stored(name))


def stored(name: str) -> str:
    """Return a page as it lies in the package."""
    return (files("streamfluence") / "guide" / f"{name}.md").read_text(encoding="utf-8")
