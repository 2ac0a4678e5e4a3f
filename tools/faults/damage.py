"""Damage every file of a finished run in every way, and see that no number changes in silence.

    python tools/faults/damage.py                     the whole campaign, 590 damages
    python tools/faults/damage.py --share 0.1         a tenth of every kind
    python tools/faults/damage.py --only flip:17      one case again, by the name in the table

A small run is made (two checkpoints, two query sets, several partitions of each, every
readout, two dampings, canonical arrays in ``sets/``), and what it says is kept as the reference.
Then, for every damage, on a copy:

1. ``verify --full`` has to find it if it could change a number.
2. Every consumer (top, export, results, scores, rows, status, score under another damping,
   finalise) has to refuse, with a message and its exit code, or to give what the undamaged run
   gave, to the bit. Anything else is *silent*.
3. ``repair`` has to bring every bit back, or to say what it cannot. A bit that is not back while
   nobody said so is silent, too.

Nothing is kept in the process between two questions. A consumer is left out only where the
damage is in the content of files alone, none of which it reads: the file system says which files
it read of the undamaged run. Some cases are asked through the command line as well.

Prints a table and, with ``--json FILE``, writes every case. The exit code is the number of
silent failures, tracebacks and what ``verify`` missed, at most 100.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _damages import KINDS, damages
from _finished import OTHERS, make_case
from _judge import Judge, Verdict

_LITTLE = 0.1  # share of the damages for which not every kind of stale run is worth its making
# What is counted of each kind, and whether it is a failure.
COLUMNS = {
    "found": False,
    "missed": True,
    "refused": False,
    "identical": False,
    "silent": True,
    "traceback": True,
    "restored": False,
    "said so": False,
    "not restored": True,
}


def main() -> None:
    """Run the campaign and print it."""
    options = _arguments()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        verdicts = campaign(Path(folder), options)
    print(table(verdicts, options.share))
    for verdict in verdicts:
        for failure in verdict.failures:
            print(f"{verdict.name}: {verdict.what}: {failure}")
    print(f"{len(verdicts)} damages in {time.monotonic() - started:.0f} s, seed {options.seed}")
    if options.json:
        written = [verdict.table() for verdict in verdicts]
        Path(options.json).write_text(json.dumps(written, indent=1) + "\n")
    sys.exit(min(sum(len(verdict.failures) for verdict in verdicts), 100))


def campaign(folder: Path, options: argparse.Namespace) -> list[Verdict]:
    """Return what became of every damage, in order."""
    kinds = OTHERS if options.share > _LITTLE else ("damping", "train", "queries")
    case = make_case(folder / "case", options.seed, kinds)
    counts = {kind: max(1, round(count * options.share)) for kind, count in KINDS.items()}
    names = [f"{kind}:{i}" for kind, count in counts.items() for i in range(count)]
    wanted = [name for name in names if not options.only or name in options.only]
    tasks = [
        (folder, case, options.seed, counts, wanted[i :: options.processes], i)
        for i in range(options.processes)
    ]
    if options.processes == 1:
        found = _judge(*tasks[0])
    else:
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            found = [one for part in pool.starmap(_judge, tasks, 1) for one in part]
    return sorted(found, key=lambda verdict: names.index(verdict.name))


def _judge(
    folder: Path, case: Any, seed: int, counts: dict[str, int], wanted: list[str], number: int
) -> list[Verdict]:
    drawn = damages(case.run, case.stale, seed, counts)
    names = [f"{kind}:{i}" for kind, count in counts.items() for i in range(count)]
    judge = Judge(case, folder / f"work-{number}")
    verdicts = []
    for name, damage in zip(names, drawn, strict=True):
        if name in wanted:
            verdicts.append(judge(name, damage))
            for failure in verdicts[-1].failures:
                print(f"{name}: {damage.what}: {failure}", file=sys.stderr, flush=True)
    return verdicts


def table(verdicts: list[Verdict], share: float) -> str:
    """Return how often each thing happened, by kind of damage."""
    rows = [["kind", "damages", *COLUMNS]]
    for kind in [*KINDS, "all"]:
        mine = [v for v in verdicts if kind in (v.name.partition(":")[0], "all")]
        counted = Counter(outcome for verdict in mine for outcome in verdict.outcomes)
        rows.append([kind, str(len(mine)), *(str(counted[column]) for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the damages of every kind")
    parser.add_argument("--only", action="append", metavar="KIND:NUMBER", help="may be repeated")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", help="where to work; a folder in memory is quickest")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
