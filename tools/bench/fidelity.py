"""Fidelity per byte: how well scores predict retraining, for references and for jobs of the library.

    python tools/bench/fidelity.py                     # everything, stored ground truth
    python tools/bench/fidelity.py --groups default unstored --no-references
    python tools/bench/fidelity.py --regenerate        # train the 500 nets again first (one minute)

JSON on stdout, a table on stderr. Protocol: digits of scikit-learn, 1,437 train and 360 query
images, MLP 64-64-10, 100 random halves x 5 seeds, query loss. LDS is the mean over queries of
Spearman between summed scores and the mean loss after retraining. ``1 model`` is the mean of the
LDS of the judged nets, ``2 models`` of the LDS of the mean scores of two of them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import fidelity_truth
import numpy as np
import torch
from fidelity_library import Workspace
from fidelity_reference import Net
from fidelity_variants import DAMPINGS, GROUPS, Variant, references

from streamfluence.evaluation import lds

BOOTSTRAP_DRAWS = 100


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    if options.regenerate:
        fidelity_truth.save(fidelity_truth.generate(fidelity_truth.Recipe(), _say))
    truth = fidelity_truth.load()
    judge = Judge(truth, options.models)
    rows: list[dict[str, Any]] = []
    if options.references:
        rows += _reference_rows(judge)
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace(Path(folder), judge.data, judge.weights, truth.recipe["weight_decay"])
        for group in options.groups:
            rows += _library_rows(judge, space, group, GROUPS[group]())
    result = {"setup": judge.setup(), "rows": rows, "checks": _checks(rows, truth.recipe)}
    print(json.dumps(result, indent=1))
    _say("\n" + _table(result))


class Judge:
    """The ground truth and the nets whose scores are judged against it."""

    def __init__(self, truth: fidelity_truth.Truth, n_models: int) -> None:
        self.truth, self.weights = truth, truth.weights[:n_models]
        self.data = fidelity_truth.digits(truth.recipe["split_seed"])

    def setup(self) -> dict[str, Any]:
        """Return what decided the figures, and the noise in the truth."""
        return {
            "recipe": self.truth.recipe,
            "facts": self.truth.facts,
            "models": len(self.weights),
            "noise_ceiling": lds.ceiling(self.truth.seed_losses),
            "one_retraining_against_the_rest": lds.one_against_rest(self.truth.seed_losses),
            "torch": torch.__version__,
        }

    def row(
        self, group: str, name: str, row_bytes: int, scores: list[np.ndarray]
    ) -> dict[str, Any]:
        """Return the figures of one method from the scores of every judged net."""
        single = [self._lds(one) for one in scores]
        pairs = [self._lds(one + other) for one, other in combinations(scores, 2)]
        interval = lds.bootstrap(
            scores[0], self.truth.masks, self.truth.losses, draws=BOOTSTRAP_DRAWS
        )
        return {
            "group": group,
            "method": name,
            "bytes": row_bytes,
            "lds_1": float(np.mean(single)),
            "lds_2": float(np.mean(pairs)) if pairs else None,
            "lds_each": single,
            "interval_of_first": [interval.low, interval.high],
        }

    def _lds(self, scores: np.ndarray) -> float:
        return lds.lds(scores, self.truth.masks, self.truth.losses)


def _reference_rows(judge: Judge) -> list[dict[str, Any]]:
    """Return a row for every float64 reference; a net's matrices are freed before the next net's."""
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for number, weights in enumerate(judge.weights):
        started = time.perf_counter()
        for name, row_bytes, scores in references(Net(weights, judge.data)):
            found.setdefault((name, row_bytes), []).append(scores().numpy())
        _say(f"references of net {number}: {time.perf_counter() - started:.0f} s")
    return [judge.row("reference", *key, scores) for key, scores in found.items()]


def _library_rows(
    judge: Judge, space: Workspace, group: str, variants: Iterable[Variant]
) -> list[dict[str, Any]]:
    rows = []
    for variant in variants:
        started = time.perf_counter()
        found = [space.scores(model, variant.options) for model in range(len(judge.weights))]
        facts = found[0][1]
        codec = facts["codec"]
        row_bytes = codec["code_bytes"] + codec["scale_bytes"]
        row = judge.row(group, variant.name, row_bytes, [scores for scores, _ in found])
        row |= {
            "expected": variant.expected,
            "options": variant.options,
            "damping_rule": facts["damping_rule"],
            "blocks": facts["blocks"],
            "codec": codec,
            "seconds_a_model": (time.perf_counter() - started) / len(found),
        }
        rows.append(row)
        _say(f"{variant.name}: {row['lds_1']:.3f}, {row['seconds_a_model']:.1f} s a model")
    return rows


def _checks(rows: list[dict[str, Any]], recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the issue's figures that this selection of rows can answer."""
    figures = {row["method"]: row["lds_1"] for row in rows}
    stored = figures.get("default, 256 bytes")
    exact = figures.get(f"Gauss-Newton by layer, damping {recipe['weight_decay']:g}")
    best = [figures.get(f"Gauss-Newton by layer, damping {damping:g}") for damping in DAMPINGS]
    floats = figures.get("default directions, float32")
    checks = []
    if stored is not None:
        checks.append(_check("LDS of 256 bytes, one model", stored, 0.75))
        if exact is not None:
            checks.append(_check("256 bytes / exact by layer, same damping", stored / exact, 0.95))
            checks.append(
                _check("256 bytes / exact by layer, best damping", stored / max(best), 0.95)
            )
        if floats is not None:
            checks.append(_check("256 bytes - its directions in float32", stored - floats, -0.03))
    return checks


def _check(name: str, value: float, least: float) -> dict[str, Any]:
    return {"figure": name, "value": value, "at_least": least, "met": bool(value >= least)}


def _table(result: dict[str, Any]) -> str:
    """Return the rows for a person to read."""
    lines = [f"{'method':<50} {'bytes':>7} {'1 model':>8} {'2 models':>8}  expected"]
    for row in result["rows"]:
        two = "-" if row["lds_2"] is None else f"{row['lds_2']:.3f}"
        expected = row.get("expected")
        note = "" if not expected else f"{expected[0]:.3f} {expected[1]:.3f}"
        lines.append(
            f"{row['method']:<50} {row['bytes']:>7,} {row['lds_1']:>8.3f} {two:>8}  {note}"
        )
    setup = result["setup"]
    lines.append(
        f"noise ceiling {setup['noise_ceiling']:.3f}; one retraining against the rest "
        f"{setup['one_retraining_against_the_rest']:.3f}; expected: METHODS 1.4"
    )
    for check in result["checks"]:
        verdict = "met" if check["met"] else "MISSED"
        lines.append(f"{check['figure']}: {check['value']:.3f} >= {check['at_least']:g}: {verdict}")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--regenerate", action="store_true", help="train the ground truth again first"
    )
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--references", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--models", type=int, choices=range(1, 6), default=2, help="nets judged")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
