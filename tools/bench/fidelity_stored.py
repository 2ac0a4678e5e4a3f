"""Exact references of a net too large for every run of the benchmark: computed once, what they predict kept.

    python tools/bench/fidelity_stored.py c --probes 4      # by layer, from probes: two minutes a net,
                                                            # and with the square of the probes more
    python tools/bench/fidelity_stored.py f                 # over all weights, by conjugate gradients

Kept is the prediction for every subset and query, all that a figure of the table rests on.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import NAMES, load_case
from fidelity_cg import Linearised, Nystrom, solve
from fidelity_judge import Judge
from fidelity_reference import Net, damped_from_rows, gradient_dot
from fidelity_rows import SOLVED
from torch import Tensor

Found = Iterator[tuple[str, Tensor, dict[str, Any]]]  # name, scores (example, query), how solved


def main() -> None:
    """Store the references of one case."""
    options = _arguments()
    torch.set_num_threads(1)
    judge = Judge(load_case(options.case), options.models)
    effects: dict[str, list[np.ndarray]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for weights in judge.weights:
        for name, scores, solved in _references(judge, weights, options):
            _say(f"{name}: {judge.lds(scores.numpy()):.4f} {solved}")
            effects.setdefault(name, []).append(judge.effects(scores.numpy()))
            facts.setdefault(name, []).append(solved)
    keep(judge.case.reference_path, effects, facts)


def keep(
    path: Path, effects: Mapping[str, list[np.ndarray]], facts: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Write predictions ``(subset, query)`` and how they were solved, by name, one a net."""
    stacked = {name: np.stack(each).astype(np.float32) for name, each in effects.items()}
    np.savez_compressed(path, **{SOLVED: np.array(json.dumps(facts))}, **stacked)  # type: ignore[arg-type]


def _references(judge: Judge, weights: Tensor, options: argparse.Namespace) -> Found:
    if options.probes:
        return _by_layer(judge, weights, options.probes)
    return _joint(judge, weights, options)


def _by_layer(judge: Judge, weights: Tensor, probes: int) -> Found:
    net = Net(judge.case, weights, judge.split, probes)
    yield "gradient dot product", gradient_dot(net), {}
    for damping, scores in damped_from_rows(net, judge.case.dampings).items():
        yield f"Gauss-Newton by layer, damping {damping:g}", scores, {"probes": probes}


def _joint(judge: Judge, weights: Tensor, options: argparse.Namespace) -> Found:
    net, started = Linearised(judge.case, weights, judge.split), time.perf_counter()
    queries = net.query_gradients()
    yield "gradient dot product", net.removal_effects(queries), {}
    near = Nystrom.of(net.products, len(weights), options.rank, weights.dtype)
    _say(
        f"{options.rank} products: {time.perf_counter() - started:.0f} s, eigenvalues "
        f"{near.values[0]:.3g} to {near.values[-1]:.3g}"
    )
    for damping in judge.case.dampings:
        found = solve(
            net.damped(damping), queries, near.inverse(damping), options.tolerance, progress=_say
        )
        solved = {"residual": found.residual, "steps": found.steps, "rank": options.rank}
        name = f"Gauss-Newton joint, damping {damping:g}"
        yield name, net.removal_effects(found.solution), solved


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(NAMES))
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--probes", type=int, help="random signs an example: by layer, from rows")
    parser.add_argument("--rank", type=int, default=1024, help="of the preconditioner")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of |b - A x| / |b|")
    return parser.parse_args()


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
