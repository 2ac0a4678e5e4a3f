"""Hostile runs: code they name, values of wrong types, paths that leave them, names for a terminal."""

import random
from collections.abc import Iterator
from typing import Any

from _hostile import COMPUTING, QUICK, READING, Hostile
from _place import Place, seal_text, write

_PYTHON = {"reader": "python", "dataset": "evil.py:make", "identity": "same"}
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\r"
WRONG: tuple[Any, ...] = (
    *(None, -1, 10**30, "x", "", [], {}, True, 1.5, 1e308, float("nan"), float("inf")),
    *([[[[]]]], {"a": {"b": 1}}, "../../outside", "\x1b[31m", ["\x00"], -(10**30), [10**30] * 3),
)
FIELDS = {
    "receipts/collect/train/0/00000000.json": (
        *("stage", "partition", "start", "stop", "attempt", "fingerprint", "objects"),
        *("facts", "version", "objects/rows\\c.0.0", "objects/zarr.json", "facts/non_finite"),
        *(
            "facts/stored",
            "objects/rows\\c.0.0/0",
            "objects/rows\\c.0.0/1",
            "objects/rows\\c.0.0/2",
        ),
    ),
    "receipts/scores/asked/00000000.json": ("facts", "facts/examples", "objects", "start"),
    "receipts/sketch/0/decision/00000000.json": ("facts", "attempt", "objects", "stop"),
    "data/asked/000000.json": (
        *("count", "partition_examples", "table", "measurement", "identity", "table/reader"),
        *("set", "generation", "before", "start", "code", "identity/files"),
    ),
    "data/train/000000.json": (
        *("count", "partition_examples", "table", "identity", "start", "before", "measurement"),
    ),
    "place.json": ("root", "task", "checkpoints", "checkpoints/0", "data", "data/train"),
    "scores/asked/score.json": (
        *("queries", "measurement", "damping", "scale", "readouts", "tasks", "missing_partitions"),
        *("meaning", "unit", "readouts/top_k", "readouts/top_k/k", "tasks/0", "tasks/0/0"),
    ),
    "manifest.json": (
        *("checkpoints", "checkpoint_weights", "compute", "compute/batch_size", "curvature"),
        *(
            "feature/name",
            "feature/options",
            "curvature/name",
            "curvature/damping",
            "format_version",
            "model",
            "model/exclude",
        ),
        *("projection", "projection/name", "projection/width", "rows", "rows/codec"),
        *("sketch", "sketch/examples", "task_digest", "checkpoints/0", "checkpoint_weights/0"),
        *("streamfluence_version", "rows/max_non_finite", "task_files"),
    ),
}


def hostile_runs() -> Iterator[Hostile]:
    """Yield every hostile run."""
    yield from _code()
    yield from _wrong_types()
    yield from _paths()
    yield from _names()


def _code() -> Iterator[Hostile]:
    table: dict[str, Any] = {"table": _PYTHON}
    yield Hostile(
        "code in a query set",
        lambda p: p.document("data/asked/000000.json", lambda c: c.update(table)),
    )
    yield Hostile(
        "code in the training set",
        lambda p: p.document("data/train/000000.json", lambda c: c.update(table)),
        (*READING, "relocate"),
    )
    yield Hostile(
        "code in the place of a training set",
        lambda p: p.document("place.json", lambda c: c["data"].update(train=[_PYTHON])),
        (*READING, *COMPUTING, "relocate"),
    )
    for reader in ("evil:make", "..evil", "os.path", "python.evil", "_source"):
        yield Hostile(
            f"reader {reader}",
            lambda p, r=reader: p.document(
                "data/asked/000000.json", lambda c: c["table"].update(reader=r)
            ),
        )
    for key, value in (
        *(
            ("rows", {"codec": "evil"}),
            ("rows", {"codec": "..evil.Evil"}),
            ("rows", {"codec": "base"}),
        ),
        *(("projection", {"name": "evil"}), ("curvature", {"name": "os.system"})),
    ):
        yield Hostile(
            f"manifest {key} {value}",
            lambda p, k=key, v=value: p.manifest(lambda c: c[k].update(v)),
            (*READING, "score"),
        )
    for name in ("evil", "..evil", "os.system", "_ranking", "evil:make"):
        yield Hostile(
            f"readout {name}",
            lambda p, n=name: p.document(
                "scores/asked/score.json", lambda c: c.update(readouts={n: {"k": 1}})
            ),
            (*READING, "repair"),
        )
    yield Hostile(
        "another task",
        lambda p: p.document("place.json", lambda c: c.update(task="evil.py")),
        (*READING, *COMPUTING, "relocate"),
    )
    yield Hostile("another task, partition lost", _lost_and_other_task, (*READING, *COMPUTING))
    yield Hostile(
        "a module as the task",
        lambda p: p.document("place.json", lambda c: c.update(task="evil:make")),
        (*COMPUTING, "relocate"),
    )
    yield Hostile(
        "task changed on disk",
        lambda p: (p.job / "task.py").write_text((p.job / "evil.py").read_text()),
        (*READING, *COMPUTING),
    )
    yield Hostile("subsets are a pickle", _pickled_subsets, (*READING, "repair"))


def _lost_and_other_task(place: Place) -> None:
    place.document("place.json", lambda c: c.update(task="evil.py"))
    (place.run / place.receipt("collect/train/0", 1)).unlink()


def _pickled_subsets(place: Place) -> None:
    (place.run / place.receipt("scores/asked")).unlink()
    options = {"subset_sum": {"subsets": "evil.npy", "sha256": None}}
    place.document("scores/asked/score.json", lambda c: c.update(readouts=options))


def _wrong_types() -> Iterator[Hostile]:
    chance = random.Random(0)
    for path, fields in FIELDS.items():
        for field in fields:
            for value in chance.sample(WRONG, 2):
                shown = repr(value) if len(repr(value)) < 24 else repr(value)[:20] + "..."
                yield Hostile(
                    f"{path if path[0] in 'mpd' else path[9:]} {field} = {shown}",
                    lambda p, a=path, f=field, v=value: _set(p, a, f, v),
                    (*QUICK, "repair") if chance.random() < 0.3 else QUICK,
                )
        yield Hostile(
            f"{path} without its fields",
            lambda p, a=path: write(p.run / a, seal_text('{"a":1}')),
            QUICK,
        )
        yield Hostile(f"{path} is a list", lambda p, a=path: write(p.run / a, b"[1, 2]"), QUICK)


def _set(place: Place, path: str, field: str, value: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        *above, last = (word.replace("\\", "/") for word in field.split("/"))
        at: Any = content
        for word in above:
            at = at[int(word) if isinstance(at, list) else word]
        at = list(at) if isinstance(at, tuple) else at
        at[int(last) if isinstance(at, list) else last] = value

    (place.manifest if path == "manifest.json" else lambda c: place.document(path, c))(change)


def _paths() -> Iterator[Hostile]:
    receipt = "receipts/collect/train/0/00000000.json"
    for name in (
        "../../../../../outside/theirs",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
        "a/../../b",
        ".",
    ):
        yield Hostile(
            f"an object called {name!r}",
            lambda p, n=name: p.document(receipt, lambda c: c["objects"].update({n: [4, 0]})),
            (*READING, "repair"),
        )
        yield Hostile(
            f"an attempt called {name!r}",
            lambda p, n=name: p.document(receipt, lambda c: c.update(attempt=n)),
            (*READING, "repair"),
        )
    for name in ("../../outside", "/etc", "..", "a\0b"):
        yield Hostile(
            f"scores of the queries {name!r}",
            lambda p, n=name: p.document("scores/asked/score.json", lambda c: c.update(queries=n)),
        )
        yield Hostile(
            f"a run whose root is {name!r}",
            lambda p, n=name: p.document("place.json", lambda c: c.update(root=n)),
            (*READING, *COMPUTING, "relocate"),
        )


def _names() -> Iterator[Hostile]:
    """Yield names and texts that would drive a terminal."""
    verbs = (*READING, "repair", "score")
    bare = ESCAPES.replace("/", "")
    yield Hostile(
        "a query set's name drives the terminal",
        lambda p: _renamed(p, "data/asked", f"data/a{bare}"),
        verbs,
    )
    yield Hostile(
        "a result's name drives the terminal",
        lambda p: _renamed(p, "scores/asked", f"scores/a{bare}"),
        verbs,
    )
    yield Hostile(
        "a stage's name drives the terminal",
        lambda p: _renamed(p, "receipts/collect/train", f"receipts/collect/t{bare}"),
        verbs,
    )
    yield Hostile(
        "a partition's folder drives the terminal",
        lambda p: (p.run / f"parts/collect/train/0/00000000.{bare}").mkdir(),
        verbs,
    )
    for path, key in (
        *(("scores/asked/score.json", "meaning"), ("scores/asked/score.json", "unit")),
        *(("scores/asked/score.json", "measurement"), ("scores/asked/score.json", "queries")),
        *(
            ("data/asked/000000.json", "measurement"),
            ("receipts/scores/asked/00000000.json", "version"),
        ),
        *(
            ("receipts/collect/train/0/00000000.json", "stage"),
            ("receipts/collect/train/0/00000000.json", "attempt"),
        ),
        ("receipts/collect/train/0/00000000.json", "fingerprint"),
    ):
        yield Hostile(
            f"{path} {key} drives the terminal",
            lambda p, a=path, k=key: p.document(a, lambda c: c.update({k: f"a{ESCAPES}"})),
            verbs,
        )
    for key in ("task", "root"):
        yield Hostile(
            f"place {key} drives the terminal",
            lambda p, k=key: p.document("place.json", lambda c: c.update({k: f"a{ESCAPES}"})),
            (*verbs, "collect", "relocate"),
        )
    for key in ("holds", "format_version", "streamfluence_version", "task_digest"):
        yield Hostile(
            f"manifest {key} drives the terminal",
            lambda p, k=key: p.manifest(lambda c: c.update({k: f"a{ESCAPES}"})),
            (*verbs, "collect"),
        )
    yield Hostile(
        "manifest names of members drive the terminal",
        lambda p: p.manifest(lambda c: c["rows"].update(codec=ESCAPES)),
        verbs,
    )
    yield Hostile(
        "checkpoints drive the terminal",
        lambda p: p.document("place.json", lambda c: c["checkpoints"].__setitem__(0, ESCAPES)),
        (*verbs, *COMPUTING),
    )
    yield Hostile(
        "object names drive the terminal",
        lambda p: p.document(
            "receipts/collect/train/0/00000000.json",
            lambda c: c["objects"].update({ESCAPES: [4, 0]}),
        ),
        verbs,
    )
    yield Hostile(
        "left-out parameters drive the terminal",
        lambda p: p.manifest(lambda c: c["model"].update(exclude=[ESCAPES])),
        verbs,
    )


def _renamed(place: Place, old: str, new: str) -> None:
    (place.run / old).rename(place.run / new)
