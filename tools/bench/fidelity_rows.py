"""Rows of the fidelity benchmark: run what a case asks for, judge it, keep it as JSON."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import load_case
from cases.base import Case
from fidelity_judge import Judge
from fidelity_library import Workspace
from fidelity_reference import DOUBLE_UP_TO, Net
from fidelity_variants import references, variants

RESULTS = Path(__file__).parent / "results"
JOINT_UP_TO = 6_000  # weights: one float64 matrix over all of them is 288 MB
REFERENCES = "references"
SOLVED = "solved"  # in a file of references, beside their predictions
PEERS = "peers"


def run_case(key: str, groups: list[str], models: int, few: int) -> None:
    """Run groups of rows of one case; its file in ``RESULTS`` keeps the rows of other groups.

    Args:
        models: Nets judged in the default's rows; ``few`` in those of many directions and in all
            others, one where the case is slow.
    """
    torch.set_num_threads(1)
    judge = Judge(load_case(key))
    for group in groups:
        started = time.perf_counter()
        if group == REFERENCES:
            keep(judge, group, list(_reference_rows(judge, few)))
        else:
            fewer = 1 if judge.case.slow else few
            keep(judge, group, list(_library(judge, group, models, fewer)))
        _say(f"case {key}, {group}: {time.perf_counter() - started:.0f} s")


def keep(judge: Judge, group: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a group into the case's file, in place of those that were there."""
    path = RESULTS / f"{judge.case.key}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"rows": []}
    others = [row for row in stored["rows"] if row["group"] != group]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"setup": judge.setup(), "rows": others + rows}, indent=1) + "\n")


def judge_peer(case: Case, folder: Path) -> None:
    """Add what ``tools/peers`` wrote into ``folder`` to the case's file, and print its rows."""
    judge = Judge(case)
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in map(json.loads, (folder / "results.jsonl").read_text().splitlines()):
        if "error" not in line and line["finite"]:
            found.setdefault((line["peer"], line["setting"]), {})[line["model"]] = line
    rows = []
    for (peer, setting), lines in found.items():
        paths = [folder / f"{peer}-{setting}-net{model}.npy" for model in sorted(lines)]
        facts = lines[min(lines)]
        row = _row(judge, PEERS, f"{peer} {setting}", facts["row_bytes"], map(np.load, paths))
        rows.append(row | {"peer": facts})
        print(f"{row['method']:<60} {row['bytes']:>8} {row['lds_1']:.3f}")
    stored = _stored_rows(case, PEERS)
    names = {row["method"] for row in rows}
    keep(judge, PEERS, [row for row in stored if row["method"] not in names] + rows)


def _stored_rows(case: Case, group: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{case.key}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["group"] == group]


def _row(judge: Judge, group: str, name: str, row_bytes: int, scores: Any) -> dict[str, Any]:
    return _row_of_effects(judge, group, name, row_bytes, [judge.effects(one) for one in scores])


def _row_of_effects(
    judge: Judge, group: str, name: str, row_bytes: int, effects: list[np.ndarray]
) -> dict[str, Any]:
    figures = asdict(judge.of_effects(effects))
    return {"group": group, "method": name, "bytes": row_bytes} | {
        "lds_1": figures["one"],
        "lds_mean": figures["mean_of_models"],
        "lds_each": figures["each"],
        "interval_of_first": figures["interval"],
        "lds_named": figures["named"],
        "lds_later": figures["later"],
    }


def _reference_rows(judge: Judge, n_models: int) -> Iterator[dict[str, Any]]:
    """Yield a row for every exact reference; a net's matrices are freed before the next net's."""
    found, facts = stored_references(judge.case)
    if not found:
        for weights in judge.weights[:n_models]:
            for name, one in reference_scores(judge, weights):
                found.setdefault(name, []).append(judge.effects(one))
    n_weights = len(judge.weights[0])
    whole = n_weights * (8 if n_weights <= DOUBLE_UP_TO else 4)
    for name, effects in found.items():
        row = _row_of_effects(judge, REFERENCES, name, whole, effects)
        yield row | ({"solved": facts[name]} if name in facts else {})


def reference_scores(judge: Judge, weights: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and scores ``(example, query)`` of every reference of one net."""
    started = time.process_time()
    net = Net(judge.case, weights, judge.split)
    joint = len(weights) <= JOINT_UP_TO
    for name, scores in references(net, judge.case.dampings, joint):
        yield name, scores().numpy()
    _say(f"case {judge.case.key}, references: {time.process_time() - started:.0f} s of processor")


def stored_references(case: Case) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """Return what references too slow for every run predict, and how they were solved, by name.

    Predictions are ``(subset, query)``, one array a net; none where there is no file.
    """
    if not case.reference_path.exists():
        return {}, {}
    with np.load(case.reference_path) as stored:
        names = [name for name in stored.files if name != SOLVED]
        return {name: list(stored[name]) for name in names}, json.loads(str(stored[SOLVED]))


def _library(judge: Judge, group: str, models: int, few: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group; net after net, so that variants can share a sketch."""
    wanted = variants(judge.case, group)
    found: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = {one.name: [] for one in wanted}
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace(Path(folder), judge.case, judge.split, judge.weights[:models])
        for model in range(min(models, len(judge.weights))):
            for one in wanted:
                if one.every_model or model < few:
                    started = time.process_time()
                    found[one.name].append(space.scores(model, one.options))
                    seconds = time.process_time() - started
                    _say(f"case {judge.case.key}, net {model}, {one.name}: {seconds:.1f} s")
    for one in wanted:
        facts, codec = found[one.name][0][1], found[one.name][0][1]["codec"]
        row_bytes = codec["code_bytes"] + codec["scale_bytes"]
        row = _row(judge, group, one.name, row_bytes, [scores for scores, _ in found[one.name]])
        yield row | {
            "options": one.options,
            "damping_rule": facts["damping_rule"],
            "blocks": facts["blocks"],
            "codec": codec,
        }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
