"""Hostile jobs, and hostile files that a command is given: TOML, flags, places to write."""

import json
import zipfile
from collections.abc import Iterator
from typing import Any

from _hostile import Hostile
from _hostile_runs import ESCAPES
from _hostile_shards import npy, pickled
from _place import Place, linked, pipe

JOB = "job.toml"
# Words of verbs that need more than a run; see ``words_of``.
RUN_JOB, PLAN_JOB, MISLABEL, RETRIEVAL, SUBSETS, EXPORT = (
    *("run job", "plan job", "mislabel", "retrieval", "score subsets", "export"),
)


def hostile_jobs() -> Iterator[Hostile]:
    """Yield every hostile job and argument."""
    yield from _toml()
    yield from _values()
    yield from _lists()
    yield from _outputs()


def _toml() -> Iterator[Hostile]:
    texts: dict[str, bytes] = {
        "nested deeply": b"x = " + b"[" * 100_000 + b"]" * 100_000,
        "tables nested deeply": b"[" + b".".join([b"a"] * 100_000) + b"]",
        "inline tables nested deeply": b"x = " + b"{a=" * 50_000 + b"1" + b"}" * 50_000,
        "no TOML": b"\x00\x01\x02",
        "no UTF-8": b"task = '\xff\xfe'",
        "empty": b"",
        "a number of 6,000 digits": b"x = " + b"9" * 6000,
        "a key that drives the terminal": f'"{_escaped(ESCAPES)}" = 1'.encode(),
        "a million keys": b"\n".join(b"k%d = 1" % i for i in range(1_000_000)),
        "a date for a task": b"task = 2020-01-01\ncheckpoints = ['first.pt']\n[train]\nreader='arrays'",
    }
    for name, text in texts.items():
        yield Hostile(f"job: {name}", lambda p, t=text: (p.job / JOB).write_bytes(t), (RUN_JOB,))
    yield Hostile("job: a pipe", lambda p: pipe(p.job / JOB), (RUN_JOB,))
    yield Hostile("job: a device", lambda p: linked(p.job / JOB, "/dev/zero"), (RUN_JOB,))
    yield Hostile("job: a folder", _job_folder, (RUN_JOB,))
    yield Hostile("job: a file of 4 GiB", _huge_job, (RUN_JOB,))


def _values() -> Iterator[Hostile]:
    """Yield a job with one value in it that is too large, or of another kind."""
    huge = 10**18
    changes = [
        *(("compute", "batch_size", huge), ("compute", "partition_examples", 8 * huge)),
        *(("compute", "threads", huge), ("compute", "workers", huge), ("sketch", "examples", huge)),
        *(("sketch", "seed", huge), ("sketch", "seed", -1), ("sketch", "seed", 10**30)),
        *(("sketch", "probes", huge), ("projection", "width", huge), ("rows", "bytes", huge)),
        *(
            ("rows", "codec", "..evil"),
            ("rows", "codec", ESCAPES),
            ("curvature", "name", "evil:make"),
        ),
        *(("rows", "width", huge), ("rows", "bits", huge), ("score", "top_k", huge)),
        *(
            ("curvature", "damping", 1e300),
            ("curvature", "damping", 1e-300),
            ("curvature", "steps", huge),
        ),
        *(("curvature", "learning_rate", 1e300), ("curvature", "batch_size", 10**30)),
        *(("train", "reader", "evil:make"), ("train", "reader", ["arrays"]), ("train", "path", 5)),
        *(("train", "path", ["train-0.npz"] * 50_000), ("train", "path", "/dev/zero")),
        *(("train", "path", "\0"), ("train", "fields", [[1]]), ("train", "group_field", {"a": 1})),
        *(("train", "path", "**/" * 40 + "*"), ("train", "path", ESCAPES), ("train", "path", {})),
        *(
            ("train", "group_names", "evil.json"),
            ("train", "text", "/dev/zero"),
            ("train", "preview", 7),
        ),
        *(
            ("score", "subsets", "/dev/zero"),
            ("score", "readouts", ["../evil"]),
            ("score", "readouts", []),
        ),
        *(
            ("compute", "executor", "..evil"),
            ("compute", "device", ESCAPES),
            ("compute", "memory", "x"),
        ),
        *(("compute", "memory", "9" * 400 + "GiB"), ("projection", "options", {"a": {"b": []}})),
        *(("", "checkpoints", []), ("", "checkpoints", ["\0"]), ("", "checkpoints", ["/dev/zero"])),
        *(("", "checkpoints", ["first.pt"] * 10_000), ("", "checkpoint_weights", [1e308, 1e308])),
        *(
            ("", "task", "/dev/zero"),
            ("", "task", "../outside/theirs/file"),
            ("", "task", ":"),
            ("", "task", "\0"),
        ),
        *(
            ("", "task", ESCAPES),
            ("", "task", ""),
            ("model", "exclude", ["(" * 5000]),
            ("model", "exclude", ["(a+)+$"]),
        ),
    ]
    for table, key, value in changes:
        shown = repr(value) if len(repr(value)) < 40 else repr(value)[:36] + "..."
        yield Hostile(
            f"job: {table}.{key} = {shown}",
            lambda p, t=table, k=key, v=value: _with(p, t, k, v),
            (RUN_JOB,),
        )
    yield Hostile(
        "job: a training set of huge rows is planned",
        lambda p: _with(p, "sketch", "examples", huge),
        (PLAN_JOB,),
    )


def _with(place: Place, table: str, key: str, value: Any) -> None:
    """Set one key of the job, whatever its text says of it; names of ``evil`` files exist."""
    (place.job / "evil.json").write_text("[" * 100_000)
    lines = (place.job / JOB).read_text().splitlines()
    head = f"[{table}]"
    start = lines.index(head) + 1 if head in lines else 0
    if table and not start:
        lines, start = [*lines, head], len(lines) + 1
    stop = next((i for i in range(start, len(lines)) if lines[i].startswith("[")), len(lines))
    inside = [line for line in lines[start:stop] if not line.startswith(f"{key} =")]
    changed = [*lines[:start], f"{key} = {_toml_of(value)}", *inside, *lines[stop:]]
    (place.job / JOB).write_text("\n".join(changed) + "\n")


def _toml_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_of, value)) + "]"
    return f'"{_escaped(value)}"' if isinstance(value, str) else repr(value)


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or 126 < ord(c) < 160 else c for c in text)


def _lists() -> Iterator[Hostile]:
    texts: dict[str, bytes] = {
        "nested deeply": b"[" * 100_000,
        "a number of 6,000 digits": b"[" + b"9" * 6000 + b"]",
        "10^30": json.dumps([10**30]).encode(),
        "-1": b"[-1]",
        "text": b'["\\u001b[31m"]',
        "an object": b'{"\\u001b[31m": [1]}',
        "no UTF-8": b"\xff\xfe",
        "nothing": b"",
        "not a number": b"[NaN]",
        "fractions": b"[0.5]",
    }
    for verb in (MISLABEL, RETRIEVAL, SUBSETS):
        for name, text in texts.items():
            yield Hostile(
                f"{verb}: {name}", lambda p, t=text: (p.job / "evil.json").write_bytes(t), (verb,)
            )
        yield Hostile(f"{verb}: a pipe", lambda p: pipe(p.job / "evil.json"), (verb,))
        yield Hostile(
            f"{verb}: a device", lambda p: linked(p.job / "evil.json", "/dev/zero"), (verb,)
        )
    for verb in (MISLABEL, SUBSETS):
        for kind in ("npy", "npz"):
            yield Hostile(
                f"{verb}: a pickle in .{kind}",
                lambda p, k=kind: _pickled_list(p, k),
                (f"{verb} {kind}",),
            )
        yield Hostile(
            f"{verb}: 10^12 rows",
            lambda p: (p.job / "evil.npy").write_bytes(
                npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }")
            ),
            (f"{verb} npy",),
        )


def _pickled_list(place: Place, kind: str) -> None:
    data = pickled(place)
    if kind == "npy":
        (place.job / "evil.npy").write_bytes(data)
        return
    with zipfile.ZipFile(place.job / "evil.npz", "w") as archive:
        archive.writestr("a.npy", data)


def _outputs() -> Iterator[Hostile]:
    """Yield places to export to; what the user has there stays as it is."""
    yield Hostile(
        "export: the temporary name is the user's",
        lambda p: (p.out / "x.csv.partial").write_text("theirs"),
        (EXPORT,),
    )
    yield Hostile(
        "export: the temporary name is a link",
        lambda p: (p.out / "x.csv.partial").symlink_to(p.outside / "theirs/file"),
        (EXPORT,),
    )
    yield Hostile(
        "export: the temporary name is a pipe",
        lambda p: pipe(p.out / "x.csv.partial"),
        (EXPORT,),
    )
    yield Hostile(
        "export: the output is a link to a file",
        lambda p: (p.out / "x.csv").symlink_to(p.outside / "theirs/file"),
        (EXPORT,),
    )
    yield Hostile(
        "export: the output is a link to nothing",
        lambda p: (p.out / "x.csv").symlink_to(p.outside / "theirs/new"),
        (EXPORT,),
    )
    yield Hostile(
        "export: the output is the user's",
        lambda p: (p.out / "x.csv").write_text("theirs"),
        (EXPORT,),
    )
    yield Hostile("export: the output is a folder", lambda p: (p.out / "x.csv").mkdir(), (EXPORT,))
    yield Hostile("export: the output is a pipe", lambda p: pipe(p.out / "x.csv"), (EXPORT,))


def _job_folder(place: Place) -> None:
    (place.job / JOB).unlink()
    (place.job / JOB).mkdir()


def _huge_job(place: Place) -> None:
    with open(place.job / JOB, "r+b") as file:
        file.truncate(4 << 30)
