"""Fidelity per byte: how well scores predict retraining, for references and for jobs of the library.

    python tools/bench/fidelity.py                        # every case, from the stored ground truth,
                                                          # then the table and the plot
    python tools/bench/fidelity.py --cases a d --groups default --no-references
    python tools/bench/fidelity.py --table                # what is in tools/bench/results/
    python tools/bench/fidelity.py --write-case b DIR     # task, data and nets of a case as files
    python tools/bench/fidelity.py --judge b OUT          # scores of a peer, see tools/peers/, or a
                                                          # run of the jobs that --write-case wrote

Every case has a file in ``tools/bench/results/``; a run replaces the groups it ran. The protocol:
subsets of half the training set, several seeds each, the query's loss. LDS is the mean over
queries of Spearman between summed scores and the mean loss after retraining; of all queries, of the
half that a job names before its rows are stored, and of the half asked of the same run later.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import fidelity_rows
import fidelity_table
import numpy as np
import torch
from cases import NAMES, load_case
from cases.base import Case
from fidelity_judge import Judge
from fidelity_library import run_scores, write_case
from fidelity_variants import GROUPS

from streamfluence.layout import MANIFEST


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _arguments()
    torch.set_num_threads(1)
    if options.write_case:
        key, folder = options.write_case
        judge = Judge(load_case(key))
        write_case(judge.case, judge.split, judge.weights, Path(folder))
    elif options.judge:
        key, *paths = options.judge
        for path in map(Path, paths):
            _judge(load_case(key), path)
    elif not options.table:
        _run(options)
    if not (options.write_case or options.judge):
        print(fidelity_table.table(options.cases))
        _draw()


def _judge(case: Case, path: Path) -> None:
    """Print the figures of a run's first checkpoint, of a folder of a peer or of a file of scores."""
    if path.is_dir() and not (path / MANIFEST).exists():
        return fidelity_rows.judge_peer(case, path)
    scores = run_scores(path) if path.is_dir() else np.load(path)
    print(json.dumps({"scores": str(path)} | asdict(Judge(case).figures([scores]))))


def _run(options: argparse.Namespace) -> None:
    """Run each case in a process of its own, ``--workers`` at a time."""
    groups = [*(["references"] if options.references else []), *options.groups]
    slow_first = sorted(options.cases, key=lambda key: not load_case(key).slow)
    jobs = [(key, groups, options.models, options.few) for key in slow_first]
    spawn = multiprocessing.get_context("spawn")  # Zarr's threads do not survive a fork
    with ProcessPoolExecutor(options.workers, spawn, max_tasks_per_child=1) as pool:
        for done in [pool.submit(fidelity_rows.run_case, *job) for job in jobs]:
            done.result()


def _draw() -> None:
    """Draw the plot, where the extra that can is there."""
    try:
        from plot import draw
    except ModuleNotFoundError as error:
        print(f"no plot: {error}; pip install '.[plot]'")
    else:
        draw()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--references", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--models", type=int, default=5, help="nets judged in the default's rows")
    parser.add_argument("--few", type=int, default=2, help="nets judged in all other rows")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="print the stored rows, run nothing")
    parser.add_argument("--write-case", nargs=2, metavar=("CASE", "DIR"))
    parser.add_argument("--judge", nargs="+", metavar="CASE OUT")
    options = parser.parse_args()
    if (options.judge and options.judge[0] not in NAMES) or len(options.judge or "ab") < 2:
        parser.error("--judge takes a case and folders of peers, or .npy files of scores")
    return options


if __name__ == "__main__":
    main()
