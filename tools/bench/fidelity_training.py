"""Train many nets of one case at once, as one stacked model.

torch's optimisers work weight by weight, so one of them over stacked weights trains every net
exactly as one alone would. Uses nothing of the library.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases.base import Case, Recipe, Split
from torch import Tensor
from torch.func import functional_call, vmap

Fields = Mapping[str, Tensor]


class Loss:
    """Loss of every example of a batch under one set of weights, by the task's own ``forward``.

    Args:
        case: Its task names the likelihood, and how a sequence's loss is reduced.
    """

    def __init__(self, case: Case) -> None:
        self.task = case.task()
        self.network = self.task.network().eval()

    def outputs(self, weights: Fields, batch: Fields) -> tuple[Tensor, Tensor]:
        """Return outputs and targets."""
        return self.task.forward(
            lambda *inputs: functional_call(self.network, dict(weights), inputs), batch
        )

    def of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses, ``(example,)``."""
        if self.task.likelihood == "gaussian":
            return ((outputs - targets) ** 2).flatten(1).sum(1) / 2
        losses = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        losses = losses.view(len(outputs), -1)
        mean = getattr(self.task, "reduction", "sum") == "mean"
        return losses.mean(1) if mean else losses.sum(1)

    def __call__(self, weights: Fields, batch: Fields) -> Tensor:
        return self.of(*self.outputs(weights, batch))


def train(
    case: Case, split: Split, members: np.ndarray, seeds: list[int], recipe: Recipe
) -> Tensor:
    """Return flat weights of nets trained independently, ``(model, weight)``.

    Args:
        members: Which training examples each net sees, int64 ``(model, example)``.
        seeds: Of each net: initial weights and order of its batches.
    """
    loss = Loss(case)
    started = [_initial(loss.task, seed) for seed in seeds]
    generators = [generator for _, generator in started]
    weights = {
        name: torch.stack([first[name] for first, _ in started]).requires_grad_()
        for name in started[0][0]
    }
    data = {name: torch.from_numpy(values) for name, values in split.train.items()}
    optimizer = _optimizer(recipe, list(weights.values()))
    batches = list(_batches(torch.from_numpy(members), generators, recipe))
    for step, rows in enumerate(batches):
        if recipe.schedule == "cosine":
            rate = recipe.learning_rate * (1 + np.cos(np.pi * step / len(batches))) / 2
            optimizer.param_groups[0]["lr"] = rate
        batch = {name: values[rows] for name, values in data.items()}
        optimizer.zero_grad()
        vmap(lambda w, b: loss(w, b).mean())(weights, batch).sum().backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten(1) for weight in weights.values()], dim=1)


def query_losses(case: Case, flat: Tensor, split: Split) -> Tensor:
    """Return the loss of every query under every net, ``(model, query)``."""
    loss = Loss(case)
    return torch.stack([loss(one, _tensors(split.queries)) for one in unflatten(case, flat)])


def fit(case: Case, flat: Tensor, fields: Mapping[str, np.ndarray]) -> Tensor:
    """Return how well each net does, ``(model,)``: share of right classes, or R squared."""
    loss, found = Loss(case), []
    for one in unflatten(case, flat):
        outputs, targets = loss.outputs(one, _tensors(fields))
        if loss.task.likelihood == "gaussian":
            found.append(1 - (outputs - targets).square().mean() / targets.var(correction=0))
        else:
            found.append((outputs.argmax(-1) == targets).float().mean())
    return torch.stack(found)


def unflatten(case: Case, flat: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield the named weights of each net of ``flat``, ``(model, weight)``."""
    shapes = case.shapes()
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    for one in flat:
        parts = one.split(sizes)
        yield {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }


def _initial(task: Any, seed: int) -> tuple[dict[str, Tensor], torch.Generator]:
    """Return torch's own initial weights, and the generator that drew them to draw the batches."""
    generator = torch.Generator()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        weights = {name: w.detach() for name, w in task.network().named_parameters()}
        generator.set_state(torch.get_rng_state())
    return weights, generator


def _batches(rows: Tensor, generators: list[torch.Generator], recipe: Recipe) -> Iterator[Tensor]:
    """Yield the examples of every net's next batch, ``(model, example)``, each pass in a new order."""

    def shuffled() -> Tensor:
        orders = [torch.randperm(rows.shape[1], generator=g) for g in generators]
        return rows.gather(1, torch.stack(orders))

    if recipe.steps is None:
        for _ in range(recipe.epochs or 0):
            yield from shuffled().split(recipe.batch_size, dim=1)
        return
    waiting = rows[:, :0]
    for _ in range(recipe.steps):
        while waiting.shape[1] < recipe.batch_size:
            waiting = torch.cat([waiting, shuffled()], dim=1)
        yield waiting[:, : recipe.batch_size]
        waiting = waiting[:, recipe.batch_size :]


def _optimizer(recipe: Recipe, weights: list[Tensor]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=recipe.momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(weights, rate, weight_decay=decay)


def _tensors(fields: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in fields.items()}
