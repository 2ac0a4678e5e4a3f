"""Give every command hostile runs, jobs and files, and see that it says so in a sentence.

    python tools/faults/hostile.py                    the whole campaign
    python tools/faults/hostile.py --list             names of the inputs
    python tools/faults/hostile.py --only "a run that is a pipe"
    python tools/faults/hostile.py --every 20         one input in so many

For every input and every verb that is tried on it, on fresh copies and in a process of its own
(2 GiB more than importing takes, 10 s of processor time):

- code that only the input names leaves a mark when it runs: *executed*;
- a folder beside the run, and the user's own files where ``export`` writes, are compared with what
  they were: *outside*;
- a traceback, exit code 1 or a crash: *traceback*;
- all processor time used, or waiting for nothing: *hang*;
- control characters on stdout or stderr, which would drive a terminal: *escapes*.

Anything else is right: one sentence and exit code 2, 3, 4, 5 or 74, or a result where the input
could not change one. Prints a table and, with ``--json FILE``, writes every case. The exit code is
the number of failures, at most 100.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _finished import JOB, make_run, write_job
from _hostile import Hostile
from _hostile_jobs import hostile_jobs
from _hostile_links import hostile_links
from _hostile_runs import hostile_runs
from _hostile_shards import hostile_shards
from _hostile_sizes import hostile_sizes
from _place import Place, snapshot
from _sandbox import Ended, call, prepare
from _tree import copy

FAILURES = ("executed", "outside", "traceback", "hang", "escapes")
_EVIL = "from pathlib import Path\nPath({mark!r}).touch()\n\n\ndef make():\n    return [1]\n"
_READ_ONLY = ("status", "top", "verify", "results")
_EXPECTED = (0, 2, 3, 4, 5, 6, 74)
_PLAIN = {  # one checkpoint and one query set are enough here
    "checkpoints": ["first.pt"],
    "checkpoint_weights": [1.0],
    "score.readouts": ["top_k", "subset_sum"],
}


@dataclass
class Tried:
    """What one verb made of one input."""

    name: str
    verb: str
    code: int
    seconds: float
    failures: list[str] = field(default_factory=list)
    told: str = ""


def main() -> None:
    """Run the campaign and print it."""
    options = _arguments()
    groups = (hostile_runs, hostile_sizes, hostile_links, hostile_jobs, hostile_shards)
    inputs = [one for group in groups for one in group()]
    chosen = [one for one in inputs if not options.only or one.name in options.only]
    chosen = chosen[:: options.every]
    if options.list:
        print("\n".join(one.name for one in chosen))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tried = campaign(Path(folder), chosen)
    print(table(tried, len(chosen)))
    for one in tried:
        if one.failures:
            print(
                f"{one.name}: {one.verb}: {', '.join(one.failures)} (exit {one.code}): {one.told}"
            )
    print(f"{len(chosen)} inputs, {len(tried)} commands in {time.monotonic() - started:.0f} s")
    if options.json:
        Path(options.json).write_text(json.dumps([vars(one) for one in tried], indent=1) + "\n")
    sys.exit(min(sum(bool(one.failures) for one in tried), 100))


def campaign(folder: Path, inputs: list[Hostile]) -> list[Tried]:
    """Return what every verb made of every input."""
    prepare()
    home = folder / "home"
    # Made in a process of its own: whoever has used Zarr may not fork.
    if _in_child(lambda: _make_home(home)):
        raise RuntimeError("the run to spoil could not be made")
    return [one for hostile in inputs for one in _try_all(folder, home, hostile)]


def _make_home(home: Path) -> None:
    """Make the run to spoil, for the place to which every sandbox is copied."""
    box = home.with_name("box")
    make_run(write_job(box / "job", 0, JOB), box / "run", _PLAIN)
    box.rename(home)


def _try_all(folder: Path, home: Path, hostile: Hostile) -> Iterator[Tried]:
    """Try every verb; what only reads leaves its sandbox to the next."""
    used = True
    for verb in sorted(hostile.verbs, key=lambda verb: verb not in _READ_ONLY):
        if used:
            place = _fresh(folder, home)
            if _in_child(lambda place=place: hostile.make(place)):
                raise RuntimeError(f"the input {hostile.name!r} could not be made")
        tried = _try(folder, place, hostile, verb)
        used = verb not in _READ_ONLY or bool(tried.failures)
        yield tried


def _try(folder: Path, place: Place, hostile: Hostile, verb: str) -> Tried:
    before = _theirs(place)
    ended = call(words_of(verb, place), folder)
    tried = Tried(hostile.name, verb, ended.code, round(ended.cpu_seconds, 2))
    tried.failures = _failures(place, ended, before)
    tried.told = ended.told.decode("utf-8", "replace").strip()[-300:].__repr__()
    if tried.failures:
        print(f"{hostile.name}: {verb}: {tried.failures} {tried.told}", file=sys.stderr, flush=True)
    return tried


def _failures(place: Place, ended: Ended, before: Any) -> list[str]:
    found = []
    if place.mark.exists():
        found.append("executed")
    after = _theirs(place)
    for made in (str(place.out / "x.csv"), str(place.out / "new.csv")):
        if made not in before:  # what was asked for
            after.pop(made, None)
    if after != before:
        found.append("outside")
    if ended.hang:
        found.append("hang")
    elif ended.code not in _EXPECTED or b"Traceback" in ended.told:
        found.append("traceback")
    if _drives_a_terminal(ended.told):
        found.append("escapes")
    return found


def _drives_a_terminal(told: bytes) -> bool:
    text = told.decode("utf-8", "replace").replace("\n", "").replace("\t", "")
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def _theirs(place: Place) -> dict[str, Any]:
    """Return everything that belongs to somebody else, as it is now."""
    return {**snapshot(place.outside), **snapshot(place.out)}


def _fresh(folder: Path, home: Path) -> Place:
    """Return a sandbox in which everything is as in the undamaged one."""
    box = folder / "box"
    shutil.rmtree(box, ignore_errors=True)
    copy(home / "run", box / "run")
    shutil.copytree(home / "job", box / "job")
    place = Place(box / "run", box / "job", box / "outside", box / "out", box / "mark")
    (place.outside / "theirs" / "folder").mkdir(parents=True)
    (place.outside / "theirs" / "file").write_text("somebody's")
    (place.outside / "theirs" / "folder" / "00000000.json").write_text("somebody's")
    place.out.mkdir()
    evil = _EVIL.format(mark=str(place.mark))
    for target in (place.job / "evil.py", place.run / "evil.py"):
        target.write_text(evil)
    return place


def words_of(verb: str, place: Place) -> list[str]:
    """Return the words of the command line of a verb."""
    run, serial = str(place.run), ["--executor", "serial"]
    job, evil = str(place.job / "job.toml"), str(place.job / "evil.json")
    compute: dict[str, list[str]] = {
        "status": ["status", run],
        "top": ["top", run, "asked/0"],
        "results": ["results", run],
        "verify": ["verify", run, "--full"],
        "repair": ["repair", run, *serial],
        "finalise": ["finalise", run, "train"],
        "collect": ["collect", run, *serial],
        "sketch": ["sketch", run, *serial],
        "sanity": ["evaluate", "sanity", run, "--sample", "16", "--query-set", "asked"],
        "score": ["score", run, "--damping", "0.3", *serial],
        "run": ["run", job, run],
        "relocate": ["relocate", run],
        "run job": ["run", job, str(place.run.with_name("new-run"))],
        "plan job": ["plan", job],
        "mislabel": ["evaluate", "mislabel", run, "--flags", evil],
        "retrieval": ["evaluate", "retrieval", run, "--relevant", evil, "--queries", "asked"],
    }
    if verb == "export":
        target = "new.csv" if not any(place.out.iterdir()) else "x.csv"
        return ["export", run, str(place.out / target), "--name", "asked"]
    if verb.startswith(("mislabel ", "score subsets")):
        kind = verb.split()[-1] if verb.split()[-1] in ("npy", "npz") else "json"
        given = str(place.job / f"evil.{kind}")
        if verb.startswith("mislabel"):
            return ["evaluate", "mislabel", run, "--flags", given]
        words = ["--queries", "asked", "--readout", "subset_sum", "--subsets", given, "--name", "n"]
        return ["score", run, *words, *serial]
    return compute[verb]


def _in_child(action: Any) -> int:
    """Do something in a forked process; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def table(tried: list[Tried], inputs: int) -> str:
    """Return how often each thing happened, by verb."""
    rows = [["verb", "commands", "right", *FAILURES, "longest s"]]
    for verb in [*sorted({one.verb for one in tried}), "all"]:
        mine = [one for one in tried if verb in (one.verb, "all")]
        counted = Counter(failure for one in mine for failure in one.failures)
        right = sum(not one.failures for one in mine)
        longest = max((one.seconds for one in mine), default=0.0)
        figures = [str(counted[failure]) for failure in FAILURES]
        rows.append([verb, str(len(mine)), str(right), *figures, f"{longest:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    spoiled = len({one.name for one in tried if one.failures})
    return "\n".join([*lines, f"{spoiled} of {inputs} inputs have a failure"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one input in so many")
    parser.add_argument("--folder", help="where to work; a folder in memory is quickest")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
