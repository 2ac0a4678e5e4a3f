"""What the documents of a run look like: type and range of everything that its readers rely on.

A document may come from anywhere, and its checksum proves only that nobody damaged it by
accident. A key that is there must be what it is in every run; one that is not there is
damage to whoever asks for it.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from streamfluence.errors import DamageError
from streamfluence.layout import PLACE

MOST_PARTITIONS = 10_000_000  # of a set over all checkpoints; each has a receipt of its own
_MOST = 2**53
_SCORE = re.compile(r"\Ascores/[^/]+/score\.json\Z")
_GENERATION = re.compile(r"\Adata/[^/]+/[0-9]{6}\.json\Z")

Check = Callable[[Any], bool]


class Document(dict[str, Any]):
    """A document of a run; asking it for what it does not hold is damage.

    Attributes:
        where: Its path, as a message names it.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        super().__init__(content)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise DamageError(
            f"{self.where} lacks {key!r}, which every such document has; put back what was there"
        )


def checked_manifest(content: Mapping[str, Any], where: str) -> Document:
    """Return a manifest whose values are what they are in every run; ``DamageError`` names the key."""
    if "holds" in content or not content.keys() & {"task_digest", "task_files"}:
        return _checked(content, _OTHER, where)
    document = _checked(content, _RUN, where)
    weights, models = content.get("checkpoint_weights"), content.get("checkpoints")
    if weights and models and len(weights) != len(models):
        _refuse(where, "checkpoint_weights", weights)
    return document


def checked_document(
    content: Mapping[str, Any], path: str, where: str, manifest: Mapping[str, Any]
) -> Document:
    """Return a document of the run of a manifest, checked by its path as ``checked_manifest`` does."""
    shape = _shape_of(path)
    for key in shape:
        if key not in content:
            _refuse(where, key, "nothing")
    document = _checked(content, {**_OPTIONAL, **shape}, where)
    if shape is _OF_GENERATION:
        partitions = -(-content["count"] // content["partition_examples"])
        refuse_partitions(where, partitions, manifest)
    models = manifest.get("checkpoints")
    if shape is _PLACE and models and len(content["checkpoints"]) != len(models):
        _refuse(where, "checkpoints", content["checkpoints"])
    return document


def refuse_partitions(where: str, partitions: int, manifest: Mapping[str, Any]) -> None:
    """Raise DamageError if a set has more partitions over all checkpoints than any has."""
    if partitions * len(manifest.get("checkpoints", [])) > MOST_PARTITIONS:
        _refuse(where, "partition_examples", f"{partitions:,} partitions")


def _shape_of(path: str) -> Mapping[str, Any]:
    if path == PLACE:
        return _PLACE
    return _SCORES if _SCORE.match(path) else _OF_GENERATION if _GENERATION.match(path) else {}


def _checked(content: Mapping[str, Any], shape: Mapping[str, Any], where: str) -> Document:
    for key in content.keys() & shape.keys():
        _check(content[key], shape[key], where, key)
    return Document(content, where)


def _check(value: Any, shape: Any, where: str, key: str) -> None:
    """Check one value; a table inside must have every key of its shape."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            _refuse(where, key, value)
        for name, inner in shape.items():
            if name not in value:
                _refuse(where, f"{key}.{name}", "nothing")
            _check(value[name], inner, where, f"{key}.{name}")
    elif not shape(value):
        _refuse(where, key, value)


def _refuse(where: str, key: str, value: Any) -> None:
    shown = repr(value)
    raise DamageError(
        f"{where} has {key} = {shown if len(shown) <= 60 else shown[:57] + '...'}, which no run has; "
        "put back what was there"
    )


def _whole(value: Any) -> bool:
    return type(value) is int


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _positive(value: Any) -> bool:
    return _count(value) and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e300


def _text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _table(value: Any) -> bool:
    return isinstance(value, dict) and "\\u0000" not in json.dumps(value)  # in no name or path


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not set(value) & set("/\\\0")


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _or_text(check: Check) -> Check:
    return lambda value: isinstance(value, str) or check(value)


def _list_of(check: Check, at_least: int = 0) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) >= at_least and all(map(check, value))
    )


def _checkpoint(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("name")) and _text(value.get("sha256"))


def _tables(value: Any) -> bool:
    """Return whether it is a list of tables of every name."""
    lists = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(each, list) and all(map(_table, each)) for each in lists)


def _source(value: Any) -> bool:
    """Return whether it says by what a score is made that is not made of stored rows."""
    if not (isinstance(value, dict) and _text(value.get("name")) and _table(value.get("options"))):
        return False
    if "record" not in value:
        return _text(value.get("solver"))
    words = all(_text(value.get(key)) for key in ("record", "digest", "scan"))
    return words and _name(value.get("key")) and _list_of(_positive, 1)(value.get("segments"))


def _digests(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


_OF_GENERATION: Mapping[str, Any] = {
    "set": _name,
    "generation": _count,
    "before": _text,
    "start": _count,
    "measurement": _text,
    "table": _table,
    "count": _positive,
    "partition_examples": _positive,
    "identity": _table,
    "code": _digests,
}
_PLACE: Mapping[str, Any] = {
    "root": _text,
    "task": _text,
    "checkpoints": _list_of(_text, at_least=1),
    "data": _tables,
}
_RUN: Mapping[str, Any] = {
    "task_digest": _text,
    "task_files": _digests,
    "checkpoints": _list_of(_checkpoint, at_least=1),
    "checkpoint_weights": _list_of(_number, at_least=1),
    "model": {"exclude": _list_of(_text)},
    "sketch": {"examples": _positive, "probes": _or_text(_positive), "seed": _whole},
    "feature": {"name": _text, "options": _table},
    "projection": {"name": _text, "width": _positive, "options": _table},
    "curvature": {
        "name": _text,
        "options": _table,
        "blocks": _text,
        "damping": _or_text(_number),
        "weight_decay": _or_none(_number),
        "learning_rate": _or_none(_number),
        "steps": _or_none(_positive),
        "momentum": _number,
        "optimizer": _text,
        "batch_size": _or_none(_positive),
    },
    "rows": {
        "bytes": _count,
        "codec": _text,
        "options": _table,
        "compressor": _text,
        "max_non_finite": _number,
    },
    "compute": {"batch_size": _positive, "precision": _text, "threads": _positive},
}
# Of a score, where something is prepared for it, and where it is not made of stored rows.
_OPTIONAL = {
    "prepared": _list_of(_text),
    "source": _source,
}
_OTHER = {"holds": _or_none(_text), "checkpoints": _list_of(lambda value: True, at_least=1)}
_SCORES: Mapping[str, Any] = {
    "queries": _name,
    "rests_on": _digests,
    "measurement": _text,
    "damping": _or_none(_number),
    "scale": _text,
    "readouts": _table,
    "tasks": _list_of(_list_of(_count)),
    "missing_partitions": _list_of(_count),
    "meaning": _text,
    "unit": _text,
}
