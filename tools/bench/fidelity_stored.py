"""Exact references of a net too large for every run of the benchmark: compute once, store the scores.

    python tools/bench/fidelity_stored.py c --probes 4 --models 1

Two minutes a net with 4 probes an example, and with the square of the probes more. The scores are
stored divided by their largest value, in float16: a rank over subsets sees neither.
"""

import argparse

import numpy as np
import torch
from cases import NAMES, load_case
from fidelity_judge import Judge
from fidelity_reference import Net, damped_from_rows, gradient_dot


def main() -> None:
    """Store the references of one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(NAMES))
    parser.add_argument("--probes", type=int, default=4, help="random signs an example")
    parser.add_argument("--models", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(load_case(options.case), options.models)
    found: dict[str, list[np.ndarray]] = {}
    for weights in judge.weights:
        net = Net(judge.case, weights, judge.split, options.probes)
        scores = {"gradient dot product": gradient_dot(net)}
        for damping, one in damped_from_rows(net, judge.case.dampings).items():
            scores[f"Gauss-Newton by layer, damping {damping:g}"] = one
        for name, one in scores.items():
            print(f"{name}: {judge.lds(one.numpy()):.4f}", flush=True)
            found.setdefault(name, []).append((one / one.abs().max()).numpy())
    stacked = {name: np.stack(each).astype(np.float16) for name, each in found.items()}
    np.savez_compressed(judge.case.reference_path, **stacked)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
