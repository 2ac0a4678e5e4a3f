"""Fidelity per byte: how well scores predict retraining, for references and for jobs of the library.

python tools/bench/fidelity.py                        # every case, stored ground truth
python tools/bench/fidelity.py --cases a d --groups default
python tools/bench/fidelity.py --write-case b DIR     # task, data and nets of a case as files
python tools/bench/fidelity.py --judge b SCORES.npy   # scores (example, query) of something else
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from cases import NAMES, load_case
from fidelity_judge import Judge
from fidelity_library import write_case


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
        figures = Judge(load_case(key)).figures([np.load(path) for path in paths])
        print(json.dumps(asdict(figures)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--write-case", nargs=2, metavar=("CASE", "DIR"))
    parser.add_argument("--judge", nargs="+", metavar="CASE SCORES.npy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
