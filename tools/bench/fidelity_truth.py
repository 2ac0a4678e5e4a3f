"""Ground truth of the fidelity benchmark: what retraining on half the data does to every query.

    python tools/bench/fidelity_truth.py b d           # train the nets of these cases again

Uses nothing of the library.
"""

import argparse
import ast
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import NAMES, load_case
from cases.base import Case, Split
from fidelity_training import fit, query_losses, train
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """Stored ground truth.

    Attributes:
        masks: Which examples each subset keeps, bool ``(subset, example)``.
        losses: Query loss of nets trained on each subset, mean over seeds, ``(subset, query)``.
        seed_losses: The same per seed, ``(seed, subset, query)``, float16 in the file.
        weights: Flat weights of the judged nets, float32 ``(model, weight)``.
        recipe: As a dictionary.
        facts: How well the nets fit.
    """

    masks: np.ndarray
    losses: np.ndarray
    seed_losses: np.ndarray
    weights: Tensor
    recipe: dict
    facts: dict = field(default_factory=dict)


def half_subsets(count: int, n_subsets: int, seed: int, share: float = 0.5) -> np.ndarray:
    """Return masks of random subsets of one size, bool ``(subset, example)``."""
    order = np.random.default_rng(seed).random((n_subsets, count)).argsort(axis=1)
    return order < int(count * share)


def train_subsets(case: Case, split: Split, masks: np.ndarray, seed: int) -> Tensor:
    """Return one net per subset; net j of ground-truth seed s has seed ``1000 + 1000 s + j``."""
    members = np.stack([np.flatnonzero(mask) for mask in masks])
    seeds = [1000 + 1000 * seed + j for j in range(len(masks))]
    size = case.models_at_once
    pieces = [slice(i, i + size) for i in range(0, len(masks), size)]
    return torch.cat([train(case, split, members[p], seeds[p], case.recipe) for p in pieces])


def generate(case: Case, progress=lambda line: None) -> Truth:
    """Return the ground truth of a case, computed from nothing."""
    split, recipe = case.data(), case.recipe
    masks = half_subsets(split.count, recipe.n_subsets, recipe.subset_seed, recipe.subset_share)
    everyone = np.tile(np.arange(split.count), (len(recipe.model_seeds), 1))
    weights = train(case, split, everyone, list(recipe.model_seeds), recipe)
    facts: dict[str, Any] = {
        "model_fit": fit(case, weights, split.queries).tolist(),
        "model_train_fit": fit(case, weights, split.train).tolist(),
        "model_loss": query_losses(case, weights, split).mean(1).tolist(),
    }
    progress(f"case {case.key}: judged nets {facts}")
    losses, subset_fit = [], []
    for seed in recipe.seeds:
        nets = train_subsets(case, split, masks, seed)
        losses.append(query_losses(case, nets, split).numpy())
        subset_fit.append(fit(case, nets, split.queries).mean().item())
        progress(f"case {case.key}, seed {seed}: {len(masks)} nets, fit {subset_fit[-1]:.3f}")
    facts["subset_fit"] = float(np.mean(subset_fit))
    seed_losses = np.stack(losses)
    return Truth(masks, seed_losses.mean(0), seed_losses, weights, asdict(recipe), facts)


def save(truth: Truth, path: Path) -> None:
    """Write the truth as one compressed ``.npz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        masks=np.packbits(truth.masks, axis=1),
        n_examples=truth.masks.shape[1],
        losses=truth.losses.astype(np.float32),
        seed_losses=truth.seed_losses.astype(np.float16),
        weights=truth.weights.numpy(),
        setup=repr({"recipe": truth.recipe, "facts": truth.facts}),
    )


def load(path: Path) -> Truth:
    """Return the stored truth."""
    with np.load(path) as stored:
        setup = ast.literal_eval(str(stored["setup"]))
        masks = np.unpackbits(stored["masks"], axis=1, count=int(stored["n_examples"]))
        return Truth(
            masks.astype(bool),
            stored["losses"].astype(np.float64),
            stored["seed_losses"].astype(np.float64),
            torch.from_numpy(stored["weights"]),
            **setup,
        )


def main() -> None:
    """Train the nets of the cases named on the command line and store their truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(NAMES))
    torch.set_num_threads(1)
    for key in parser.parse_args().cases:
        case, started = load_case(key), time.perf_counter()
        save(generate(case, lambda line: print(line, file=sys.stderr)), case.truth_path)
        print(f"{case.truth_path}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
