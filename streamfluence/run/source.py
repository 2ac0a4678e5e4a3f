"""Where scores of a run come from, as their documents say: stored rows, or gradients that stream by."""

from collections.abc import Mapping
from typing import Any

ROWS_SOURCE = "rows"
SOURCE = "source"  # key of a score's document, where it is not made of rows
DIRECTIONS = "directions"  # name of what such a source prepares


def source_name(spec: Mapping[str, Any]) -> str:
    """Return the member of ``scoring.sources`` that scores are made by."""
    return str(spec[SOURCE]["name"]) if SOURCE in spec else ROWS_SOURCE


def of_rows(spec: Mapping[str, Any]) -> bool:
    """Return whether scores are made of stored rows, and so rest on them."""
    return source_name(spec) == ROWS_SOURCE
