"""Judge the peers' scores by the stored ground truth: one file for all cases, and a table.

    python tools/peers/judge.py a=build/peers/scores/a d=build/peers/scores/d

Each folder is what ``tools/peers/run.py`` wrote. ``tools/bench/results/peers.json`` gets every
setting and every failure with its message; cases and methods not in a folder keep their rows. A
setting is marked ``default`` where it is what the package does when nothing is chosen, and
``tuned`` where it is the best of a peer's on that case: chosen on the truth it is judged by, which
favours the peer.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from cases import NAMES, load_case  # noqa: E402
from fidelity_judge import Judge  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "peers.json"
NOTES = ROOT / "peers" / "notes.json"
DEFAULTS = {
    "traker": ("k2048-half-default",),
    "kronfluence": ("ekfac-damping1e-08",),
    "dattri": (
        "trak-k512-ridge0",
        "cg10-damping0",
        "arnoldi100-damping0",
        "datainf-damping0",
        "ekfac-damping0",
        "lissa-default",
        "logra-k4096-default",
    ),
    "pydvl": ("ekfac-damping0",),
}


def main() -> None:
    """Judge the folders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="CASE=FOLDER", help="none: print the table")
    judged = {}
    for given in parser.parse_args().folders:
        key, _, folder = given.partition("=")
        if key not in NAMES or not (Path(folder) / "results.jsonl").is_file():
            parser.error(f"{given}: want one of {', '.join(NAMES)}, =, and a folder of run.py")
        judged[key] = judge(key, Path(folder))
    stored = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else {}
    judged = {key: joined(stored.get(key, {}), case) for key, case in judged.items()}
    result = {
        "notes": json.loads(NOTES.read_text()),
        "cases": dict(sorted((stored | judged).items())),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["cases"]))


def judge(key: str, folder: Path) -> dict[str, Any]:
    """Return the rows and the failures of one case."""
    truth = Judge(load_case(key))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in lines:
        if "error" not in line:
            found.setdefault((line["peer"], line["setting"]), {})[line["model"]] = line
    failures = [line for line in lines if "error" in line]
    rows = []
    for (peer, setting), nets in found.items():
        facts = nets[min(nets)]
        if all(line["finite"] for line in nets.values()):
            paths = [folder / f"{peer}-{setting}-net{model}.npy" for model in sorted(nets)]
            rows.append(row(truth, facts, [np.load(path) for path in paths]))
        else:
            failures.append(_named(facts) | {"error": "some scores are NaN or infinite"})
    return {"rows": rows, "failures": failures}


def joined(stored: dict[str, Any], judged: dict[str, Any]) -> dict[str, Any]:
    """Return a case's rows and failures with those of the methods judged now in place of older ones."""
    again = {(one["peer"], one["method"]) for kind in judged.values() for one in kind}
    case = {
        kind: [one for one in stored.get(kind, ()) if (one["peer"], one["method"]) not in again]
        + judged[kind]
        for kind in ("rows", "failures")
    }
    mark_tuned(case["rows"])
    return case


def row(truth: Judge, facts: dict[str, Any], scores: list[np.ndarray]) -> dict[str, Any]:
    """Return the figures of one setting from the scores of its nets."""
    each = [truth.lds(one) for one in scores]
    return _named(facts) | {
        "default": facts["setting"] in DEFAULTS[facts["peer"]],
        "bytes": facts["row_bytes"],
        "lds_1": float(np.mean(each)),
        "lds_each": each,
        "lds_mean": truth.lds(np.sum(scores, axis=0)) if len(scores) > 1 else None,
        "seconds": facts["seconds"],
        "peak_mib": facts["peak_mib"],
    }


def mark_tuned(rows: list[dict[str, Any]]) -> None:
    """Mark the best setting of each peer by the figure of one model."""
    best: dict[str, dict[str, Any]] = {}
    for one in rows:
        one["tuned"] = False
        if one["lds_1"] > best.get(one["peer"], {"lds_1": -2.0})["lds_1"]:
            best[one["peer"]] = one
    for one in best.values():
        one["tuned"] = True


def table(cases: dict[str, Any]) -> str:
    """Return each method's default and its best setting, and what failed."""
    lines = [
        f"{'case':<4} {'peer':<12} {'setting':<34} {'bytes':>7} {'1 model':>8} {'mean':>6} {'nets':>4}"
    ]
    for key, case in cases.items():
        for one in _shown(case["rows"]):
            mean = "-" if one["lds_mean"] is None else f"{one['lds_mean']:.3f}"
            mark = " default" * one["default"] + " tuned" * one["tuned"]
            lines.append(
                f"{key:<4} {one['peer']:<12} {one['setting']:<34} {one['bytes']:>7,} "
                f"{one['lds_1']:>8.3f} {mean:>6} {len(one['lds_each']):>4}{mark}"
            )
        lines += [
            f"{key:<4} {one['peer']:<12} {one.get('setting', one['method']):<34} failed, net "
            f"{one['model']}: {one['error'][:90]}"
            for one in case["failures"]
        ]
    return "\n".join(lines)


def _shown(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the defaults, and the best setting of each method."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for one in rows:
        key = (one["peer"], one["method"])
        if key not in best or one["lds_1"] > best[key]["lds_1"]:
            best[key] = one
    return [one for one in rows if one["default"] or one is best[one["peer"], one["method"]]]


def _named(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("peer", "version", "method", "setting", "model")}


if __name__ == "__main__":
    main()
