"""Mislabel detection: the digits example trained on labels of which a tenth is flipped at random.

    python tools/bench/mislabel.py                     # a few minutes on one core
    python tools/bench/mislabel.py --epochs 2 10 50 150 --weight-decay 0 --seeds 1   # memorised

JSON on stdout, a table on stderr. The example's net, recipe and job; checkpoints after some of
its epochs, the last one the end of training. Every judged run is one of the library: `run`, then
`evaluate mislabel`.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from streamfluence.stages.evaluate.mislabel import evaluate_mislabel
from streamfluence.stages.run import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
EPOCHS = (2, 5, 10, 20, 40)
WANTED_AUC = 0.98


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            rows += _judged(Path(name), options, seed)
    table = _means(rows)
    checks = [_check(row) for row in table if row["ranking"] == "self influence"]
    print(json.dumps({"setup": vars(options), "rows": table, "checks": checks}, indent=1))
    for row in table:
        found = "  ".join(f"{row[key]:.2f}" for key in row if key.startswith("in_"))
        _say(f"{row['checkpoints']:<18} {row['ranking']:<28} AUC {row['auc']:.4f}   {found}")
    for check in checks:
        verdict = "met" if check["met"] else "MISSED"
        _say(f"{check['figure']}: {check['value']:.4f} >= {WANTED_AUC}: {verdict}")


def _ensembles(epochs: list[int]) -> dict[str, list[int]]:
    return {"the last epoch": epochs[-1:], "an early epoch": epochs[1:2], "all epochs": epochs}


def _check(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "figure": f"AUC of self-influence, {row['checkpoints']}",
        "value": row["auc"],
        "at_least": WANTED_AUC,
        "met": row["auc"] >= WANTED_AUC,
    }


def _judged(folder: Path, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Return a row for every ranking of every ensemble, for one draw of flips and weights."""
    for file in EXAMPLE.glob("*.*"):
        shutil.copy(file, folder)
    sys.path.insert(0, str(folder))
    try:
        task = _module(folder / "task.py", "task")
        _module(folder / "train.py", "train").write_data()
    finally:
        sys.path.remove(str(folder))
    mask = _flip(folder, options.noise, seed)
    np.save(folder / "flags.npy", mask)
    accuracy = _train(task, folder, options, seed)
    rows = []
    for name, epochs in _ensembles(options.epochs).items():
        started = time.perf_counter()
        target = str(folder / f"run-{'-'.join(map(str, epochs))}")
        changes = {
            "checkpoints": [f"epoch-{epoch}.pt" for epoch in epochs],
            "score.readouts": ["self_influence"],
            "compute.executor": "serial",
            # Without decay nothing says what damps, so the rule is left to the spectrum.
            "curvature": {"weight_decay": options.weight_decay} if options.weight_decay else {},
        }
        run(folder / "job.toml", target, changes)
        found = evaluate_mislabel(target, str(folder / "flags.npy"))["rankings"]
        _say(f"seed {seed}, {name} {epochs}: {time.perf_counter() - started:.0f} s")
        rows += [{"checkpoints": name, "epochs": epochs, **row} for row in found]
    _say(f"seed {seed}: accuracy on the flipped labels {accuracy}")
    return rows


def _flip(folder: Path, noise: float, seed: int) -> np.ndarray:
    """Replace a share of the training labels by other classes; return which."""
    generator = np.random.default_rng(seed)
    paths = sorted(folder.glob("data/train-*.npz"))
    shards = [dict(np.load(path)) for path in paths]
    count = sum(len(shard["label"]) for shard in shards)
    mask = np.zeros(count, bool)
    mask[generator.choice(count, round(noise * count), replace=False)] = True
    shift = np.where(mask, generator.integers(1, 10, count), 0)
    start = 0
    for path, shard in zip(paths, shards, strict=True):
        stop = start + len(shard["label"])
        np.savez(path, **{**shard, "label": (shard["label"] + shift[start:stop]) % 10})
        start = stop
    return mask


def _train(task: Any, folder: Path, options: argparse.Namespace, seed: int) -> dict[int, float]:
    """Train as the example does, with a checkpoint after some epochs; return accuracies."""
    torch.manual_seed(seed)
    images, labels = task._training_set()
    net = task.Net().train()
    optimizer = torch.optim.Adam(
        net.parameters(), lr=task.LEARNING_RATE, weight_decay=options.weight_decay
    )
    steps = options.epochs[-1] * -(-len(labels) // task.BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = {}
    for epoch in range(1, options.epochs[-1] + 1):
        for rows in torch.randperm(len(labels)).split(task.BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        if epoch in options.epochs:
            torch.save(net.state_dict(), folder / f"epoch-{epoch}.pt")
            with torch.no_grad():
                right = (net(images).argmax(1) == labels).double().mean()
            accuracy[epoch] = round(float(right), 4)
    return accuracy


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row an ensemble and ranking, figures averaged over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["checkpoints"], row["ranking"]), []).append(row)
    return [
        {
            key: float(np.mean([row[key] for row in group])) if isinstance(value, float) else value
            for key, value in group[0].items()
        }
        for group in groups.values()
    ]


def _module(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=float, default=0.1, help="share of flipped labels")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS), metavar="N")
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1, help="draws of flips and weights")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
