"""Exact references of a net too large for every run of the benchmark: compute once, store the scores.

    python tools/bench/fidelity_stored.py c --probes 16 --models 2

Blocks of 16,000 weights take ten minutes a net. The scores are stored divided by their largest
value, in float16: a rank over subsets sees neither.
"""

import argparse

import numpy as np
import torch
from cases import NAMES, load_case
from fidelity_judge import Judge
from fidelity_rows import reference_scores


def main() -> None:
    """Store the references of one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(NAMES))
    parser.add_argument("--probes", type=int, default=16, help="random signs an example")
    parser.add_argument("--models", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(load_case(options.case), options.models)
    found: dict[str, list[np.ndarray]] = {}
    for weights in judge.weights:
        for name, scores in reference_scores(judge, weights, options.probes):
            print(f"{name}: {judge.lds(scores):.4f}", flush=True)
            found.setdefault(name, []).append(scores / np.abs(scores).max())
            stacked = {name: np.stack(each).astype(np.float16) for name, each in found.items()}
            np.savez_compressed(judge.case.reference_path, **stacked)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
