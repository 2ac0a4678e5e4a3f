"""Keys of a job that are short for an option of a member, as ``score.top_k`` is for ``k`` of ``top_k``."""

from collections.abc import Mapping
from typing import Any

from streamfluence.errors import InputError
from streamfluence.job import Rows, Score

# Of each family the short forms, the members they are for, and the option they stand for.
_READOUTS = {
    "score.top_k": (("top_k", "self_influence"), "k"),
    "score.subsets": (("subset_sum",), "subsets"),
}
_CODECS = {"rows.width": (("bands",), "width"), "rows.bits": (("bands",), "bits")}


def readout_options(
    score: Score, tables: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the options of every readout that is asked for, by name in the order of the result.

    Args:
        score: Names readouts, and gives short forms of their options.
        tables: ``[readouts.NAME]`` of a job; one asks for its readout, too.

    Raises:
        InputError: If a short form and a table contradict each other.
    """
    given = {"score.top_k": score.top_k, "score.subsets": score.subsets}
    return {
        name: _with_short(f"readouts.{name}", name, tables.get(name, {}), _READOUTS, given)
        for name in dict.fromkeys((*chosen_readouts(score), *tables))
    }


def chosen_readouts(score: Score) -> tuple[str, ...]:
    """Return the readouts that ``score`` names, or those that are read out where it names none."""
    if score.readouts != "auto":
        return tuple(score.readouts)
    return ("top_k", "self_influence") if score.source == "rows" else ("top_k",)


def codec_options(rows: Rows) -> dict[str, Any]:
    """Return the options of the codec of ``rows``.

    Raises:
        InputError: If a short form is not for this codec, or contradicts ``rows.options``.
    """
    given = {"rows.width": rows.width, "rows.bits": rows.bits}
    for short, value in given.items():
        owners, _ = _CODECS[short]
        if value is not None and rows.codec not in owners:
            raise InputError(
                f"{short} belongs to the codec {owners[0]!r}, not {rows.codec!r}; leave it out, or give "
                "options of this codec in [rows.options]"
            )
    return _with_short("rows.options", rows.codec, rows.options, _CODECS, given)


def _with_short(
    where: str,
    name: str,
    table: Mapping[str, Any],
    forms: Mapping[str, tuple[tuple[str, ...], str]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of one member: its table, and what short forms add to it."""
    found = dict(table)
    for short, (owners, option) in forms.items():
        value = given[short]
        if value is None or name not in owners:
            continue
        if found.setdefault(option, value) != value:
            raise InputError(
                f"{short} = {value!r} is short for {where}.{option}, which is {found[option]!r}; give one "
                "of them"
            )
    return found
