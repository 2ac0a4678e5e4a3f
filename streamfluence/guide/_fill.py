"""Fill the generated parts of a page: what stands between ``<!-- keys: rows -->`` and ``<!-- end -->``."""

import re

from streamfluence.guide._keys import keys
from streamfluence.guide._members import members

_GENERATORS = {"keys": keys, "members": members}
_PART = re.compile(r"(<!-- (\w+): ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with every generated part made anew."""
    return _PART.sub(_generated, text)


def _generated(placeholder: re.Match[str]) -> str:
    head, generator, subject, end = placeholder.groups()
    return f"{head}\n{_GENERATORS[generator](subject)}\n\n{end}"
