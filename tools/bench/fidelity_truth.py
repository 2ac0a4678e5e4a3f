"""Ground truth of the fidelity benchmark: what retraining on half the data does to every query.

    python tools/bench/fidelity_truth.py b d           # train the nets of these cases again

Hours for the larger nets: what was trained is kept in ``--parts``, and a second call goes on there.
Uses nothing of the library.
"""

import argparse
import ast
import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cases import NAMES, load_case
from cases.base import Case, Split
from fidelity_training import fit, query_losses, train
from torch import Tensor

PARTS = Path(__file__).parents[2] / "build" / "truth"


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


def train_subsets(case: Case, split: Split, masks: np.ndarray, seed: int, first: int = 0) -> Tensor:
    """Return one net per subset; net j of ground-truth seed s has seed ``1000 + 1000 s + j``.

    Args:
        first: Number j of the first mask.
    """
    members = np.stack([np.flatnonzero(mask) for mask in masks])
    seeds = [1000 + 1000 * seed + first + j for j in range(len(masks))]
    size = case.models_at_once
    pieces = [slice(i, i + size) for i in range(0, len(masks), size)]
    return torch.cat([train(case, split, members[p], seeds[p], case.recipe) for p in pieces])


def generate(case: Case, parts: Path, progress: Callable[[str], None] = lambda line: None) -> Truth:
    """Return the ground truth of a case; what ``parts`` holds of its recipe is not trained again."""
    split, recipe = case.data(), case.recipe
    parts = parts / f"{case.name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    masks = half_subsets(split.count, recipe.n_subsets, recipe.subset_seed, recipe.subset_share)
    judged = _joined(
        kept(parts / f"judged{seed}.npz", partial(_judged, case, split, seed))
        for seed in recipe.model_seeds
    )
    facts = {name: values.tolist() for name, values in judged.items() if name != "weights"}
    progress(f"case {case.key}: judged nets {facts}")
    losses, subset_fit = [], []
    for seed in recipe.seeds:
        pieces = []
        for first in range(0, len(masks), case.models_at_once):
            make = partial(_piece, case, split, masks, seed, first)
            pieces.append(kept(parts / f"seed{seed}-from{first}.npz", make))
            progress(f"case {case.key}, seed {seed}, from {first}: {pieces[-1]['fit'].mean():.3f}")
        trained = _joined(pieces)
        losses.append(trained["losses"])
        subset_fit.append(trained["fit"].mean())
    facts["subset_fit"] = float(np.mean(subset_fit))
    seed_losses, weights = np.stack(losses), torch.from_numpy(judged["weights"])
    return Truth(masks, seed_losses.mean(0), seed_losses, weights, asdict(recipe), facts)


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays in ``path``, made and put there first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez(unfinished, **make())  # type: ignore[arg-type]
        unfinished.rename(path)
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def _joined(pieces: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    each = list(pieces)
    return {name: np.concatenate([piece[name] for piece in each]) for name in each[0]}


def _judged(case: Case, split: Split, seed: int) -> dict[str, np.ndarray]:
    """Return one net, not a stack, of all examples, and how well it does."""
    weights = train(case, split, np.arange(split.count)[None], [seed], case.recipe)
    return {
        "weights": weights.numpy(),
        "model_fit": fit(case, weights, split.queries).numpy(),
        "model_train_fit": fit(case, weights, split.train).numpy(),
        "model_loss": query_losses(case, weights, split).mean(1).numpy(),
    }


def _piece(
    case: Case, split: Split, masks: np.ndarray, seed: int, first: int
) -> dict[str, np.ndarray]:
    nets = train_subsets(case, split, masks[first : first + case.models_at_once], seed, first)
    losses = query_losses(case, nets, split)
    return {"losses": losses.numpy(), "fit": fit(case, nets, split.queries).numpy()}


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
    parser.add_argument("--parts", type=Path, default=PARTS, help="where unfinished truth is kept")
    torch.set_num_threads(1)
    options = parser.parse_args()
    for key in options.cases:
        case, started = load_case(key), time.perf_counter()
        truth = generate(case, options.parts, lambda line: print(line, file=sys.stderr))
        save(truth, case.truth_path)
        print(f"{case.truth_path}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
