"""Where scores of a run come from, as their documents say: stored rows, or what streams or was recorded."""

from collections.abc import Mapping
from typing import Any

from streamfluence.layout import scan_stage

ROWS_SOURCE = "rows"
SOURCE = "source"  # key of a score's document, where it is not made of rows
DIRECTIONS = "directions"  # name of what such a source prepares


def scan_of(spec: Mapping[str, Any]) -> tuple[str, int]:
    """Return the stage of the segments that a score is made of and how many there are; 0 of most."""
    said = spec.get(SOURCE, {})
    return scan_stage(said.get("key", "")), len(said.get("segments", ()))


def source_name(spec: Mapping[str, Any]) -> str:
    """Return the member of ``scoring.sources`` that scores are made by."""
    return str(spec[SOURCE]["name"]) if SOURCE in spec else ROWS_SOURCE


def of_rows(spec: Mapping[str, Any]) -> bool:
    """Return whether scores are made of stored rows, and so rest on them."""
    return source_name(spec) == ROWS_SOURCE
