"""Data value embedding against training again without one example of one step.

    python tools/bench/temporal.py [--cases 43,32,0.1 237,6,0.02] [--removals 120] [--queries 100]

A case is steps, batch size and learning rate of plain SGD: an MLP of 1,210 weights (64-16-10, tanh)
on scikit-learn's digits, in float64. The truth of an example is the loss of every query after
training again from its step on, in the same order, without it in that step, less what it was. Scores
are products of the queries' gradients with embeddings, of Gauss-Newton and of the empirical Fisher
matrix; `none` leaves out what later steps do. Spearman's correlation over examples, mean over queries,
and beside it that over queries, mean over examples. JSON on stdout.
"""

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _setup import setup
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from streamfluence.options import make

TRAIN = 1437
CASES = ("43,32,0.1", "237,6,0.02", "237,32,0.02", "237,32,0.1")


@dataclass(frozen=True)
class Data:
    """Digits: training examples and queries, float64."""

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor


def digits(queries: int) -> Data:
    """Return digits in a fixed random order."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x, y = torch.from_numpy(found.data / 16)[order], torch.from_numpy(found.target)[order]
    test = slice(TRAIN, TRAIN + queries)
    return Data(x[:TRAIN], y[:TRAIN], x[test], y[test])


class Net:
    """An MLP as a function of one flat vector of weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
        own = dict(self.module.named_parameters())
        self.shapes = {name: weight.shape for name, weight in own.items()}
        self.start = torch.cat([weight.detach().flatten() for weight in own.values()])

    def logits(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return the outputs of a batch."""
        pieces = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {
            name: piece.view(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        found: Tensor = functional_call(self.module, named, (x,))
        return found

    def losses(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each example."""
        return cross_entropy(self.logits(weights, x), y, reduction="none")

    def gradients(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each example, ``(example, weight)``."""
        one = grad(lambda w, a, b: self.losses(w, a[None], b[None]).sum())
        found: Tensor = vmap(one, (None, 0, 0))(weights, x, y)
        return found

    def vectors(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return vectors whose outer products sum to the Gauss-Newton matrix of a batch."""
        jacobian = vmap(jacrev(lambda w, a: self.logits(w, a[None])[0]), (None, 0))(weights, x)
        p = self.logits(weights, x).softmax(1)
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        return torch.einsum("eok,eow->ekw", root, jacobian).flatten(0, 1)


@dataclass(frozen=True)
class Training:
    """A training run: which examples each step had, and the weights before it, the last ones at the end."""

    batches: list[np.ndarray]
    weights: list[Tensor]
    rate: float


def batches_of(steps: int, size: int) -> list[np.ndarray]:
    """Return the examples of every step, epoch by epoch."""
    generator, found = np.random.default_rng(0), list[np.ndarray]()
    while len(found) < steps:
        order = generator.permutation(TRAIN)
        found += np.split(order[: TRAIN // size * size], TRAIN // size)
    return found[:steps]


def step(
    net: Net,
    data: Data,
    weights: Tensor,
    batch: np.ndarray,
    rate: float,
    without: int | None = None,
) -> Tensor:
    """Return the weights after one step; one that is left out counts in the mean, with no gradient."""
    kept = batch[batch != without]
    loss = grad(lambda w: net.losses(w, data.x[kept], data.y[kept]).sum() / len(batch))
    moved: Tensor = weights - rate * loss(weights)
    return moved


def trained(net: Net, data: Data, steps: int, size: int, rate: float) -> Training:
    """Train, keeping the weights of every step."""
    batches, weights = batches_of(steps, size), [net.start]
    for batch in batches:
        weights.append(step(net, data, weights[-1], batch, rate))
    return Training(batches, weights, rate)


def changes(net: Net, data: Data, training: Training, place: tuple[int, int]) -> Tensor:
    """Return the change of every query's loss without one example of one step."""
    number, example = place
    weights = training.weights[number]
    for later, batch in enumerate(training.batches[number:]):
        without = None if later else example
        weights = step(net, data, weights, batch, training.rate, without)
    before = net.losses(training.weights[-1], data.query_x, data.query_y)
    return net.losses(weights, data.query_x, data.query_y) - before


def embeddings(net: Net, data: Data, training: Training, curvature: str) -> Tensor:
    """Return the embedding of every example of every step; of curvature ``none`` as if it were the last."""
    scan = make("scans", "value_embedding", {"curvature": "fisher"})
    if curvature != "none":
        scan = make("scans", "value_embedding", {"curvature": curvature})
    state = scan.empty(len(net.start))
    for batch, weights in reversed(list(zip(training.batches, training.weights[:-1], strict=True))):
        x, y = data.x[batch], data.y[batch]
        vectors = net.vectors(weights, x) if curvature == "gauss_newton" else None
        if curvature == "none":
            vectors = x.new_zeros(0, len(weights))
        state = scan.step(state, net.gradients(weights, x, y), training.rate / len(batch), vectors)
    found: Tensor = scan.embeddings(state)
    return found


def agreement(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return mean rank correlations of two tables ``(example, query)``."""
    of_queries = [spearmanr(s, t)[0] for s, t in zip(scores.T, truth.T, strict=True)]
    of_examples = [spearmanr(s, t)[0] for s, t in zip(scores, truth, strict=True)]
    return {
        "over_examples": round(float(np.mean(of_queries)), 3),
        "over_queries": round(float(np.mean(of_examples)), 3),
    }


def judged(case: str, removals: int, queries: int) -> dict[str, Any]:
    """Return every figure of one case."""
    steps, size, rate = case.split(",")
    net, data = Net(), digits(queries)
    training = trained(net, data, int(steps), int(size), float(rate))
    places = [(number, int(e)) for number, batch in enumerate(training.batches) for e in batch]
    chosen = np.random.default_rng(1).choice(len(places), removals, replace=False)
    truth = torch.stack([changes(net, data, training, places[one]) for one in chosen]).numpy()
    last = training.weights[-1]
    asked = net.gradients(last, data.query_x, data.query_y)
    right = net.logits(last, data.query_x).argmax(1) == data.query_y
    found: dict[str, Any] = {"accuracy": round(float(right.double().mean()), 3)}
    for curvature in ("gauss_newton", "fisher", "none"):
        started = time.perf_counter()
        scores = (embeddings(net, data, training, curvature)[chosen] @ asked.T).numpy()
        found[curvature] = agreement(scores, truth)
        found[curvature]["seconds"] = round(time.perf_counter() - started, 1)
    return found


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--removals", type=int, default=120)
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    found = {case: judged(case, given.removals, given.queries) for case in given.cases}
    print(json.dumps({**setup(), **vars(given), "steps,batch,rate": found}, indent=1))


if __name__ == "__main__":
    main()
