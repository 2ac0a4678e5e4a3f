"""dattri (PyPI): gradient products, TRAK, LoGra and influence by CG, Arnoldi, DataInf, EK-FAC, LiSSA.

Its inner-product attributors give the query's loss gradient times the inverse times the example's
loss gradient: positive where removing the example raises the query's loss. Its TRAK attributes
the log-odds; times the query's own 1 - p that is the same sign. It sees the training set as
one batch, because it adds up one inverse per batch.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from _case import Case, Method, main
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorEKFAC,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, TensorDataset

DAMPINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RIDGES = (0.0, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
QUERIES_AT_ONCE = 40
MOST_WEIGHTS_EXPLICIT = 1000


def task(case: Case, loss: Callable[..., Tensor]) -> AttributionTask:
    """Return the package's task for a loss of (outputs, targets) with a batch axis."""

    def of_batch(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(functional_call(case.network, parameters, batch[0]), batch[1])

    return AttributionTask(of_batch, case.network, case.network.state_dict())


def one_example(case: Case, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``loss`` as a function of parameters and one example without batch axis."""

    def of_one(parameters: dict[str, Tensor], example: tuple[Tensor, Tensor]) -> Tensor:
        x, y = example
        outputs = functional_call(case.network, parameters, x.unsqueeze(0))
        return loss(outputs, y.unsqueeze(0)).sum()

    return of_one


def gradient_products(case: Case, _: None, normalized: bool) -> tuple[Tensor, int]:
    """Return TracIn over one checkpoint, unprojected: gradient dot products or cosines."""
    of_loss = AttributionTask(
        one_example(case, case.losses), case.network, case.network.state_dict()
    )
    attributor = TracInAttributor(of_loss, torch.ones(1), normalized_grad=normalized)
    attributor.projector_kwargs = None
    return attributor.attribute(case.batches(case.train), case.batches(case.queries)), 0


def trak(case: Case, _: None, value: tuple[int, float]) -> tuple[Tensor, int]:
    """Return TRAK scores at a width and a ridge."""
    width, ridge = value
    probability = one_example(case, lambda *pair: 1 - case.pulls(*pair))
    attributor = TRAKAttributor(
        AttributionTask(one_example(case, case.margins), case.network, case.network.state_dict()),
        correct_probability_func=probability,
        projector_kwargs={"proj_dim": width},
        regularization=ridge,
    )
    attributor.cache(case.batches(case.train, 128))
    found = attributor.attribute(case.batches(case.queries, 128))
    x, y = case.queries.tensors
    with torch.no_grad():
        pulls = case.pulls(case.network(x), y)
    return found * pulls, 4 * (width + 1)


class ByName(Dataset):
    """Pairs as dictionaries of ``x`` and ``y``."""

    def __init__(self, pairs: TensorDataset) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, example: int) -> dict[str, Tensor]:
        x, y = self._pairs[example]
        return {"x": x, "y": y}


class WithLoss(nn.Module):
    """The network as LoGra takes batches by name: an output with the loss of the batch.

    Given pairs instead, it runs the first image without its batch axis to learn the shapes, and
    measures queries by cross-entropy whatever the task's loss.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.network, self._losses = case.network, case.losses

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        """Return the summed loss."""
        return SimpleNamespace(loss=self._losses(self.network(x), y).sum())


def logra(case: Case, _: None, value: tuple[int, float | None]) -> tuple[Tensor, int]:
    """Return LoGra scores at a width a layer and a damping relative to the mean diagonal."""
    width, damping = value

    def loss(model: nn.Module, batch: Any, device: str) -> Tensor:
        return model(**batch).loss

    model = WithLoss(case)
    of_loss = AttributionTask(loss, model, model.state_dict())
    attributor = LoGraAttributor(of_loss, proj_dim=width, damping=damping, offload="none")
    train, queries = (
        DataLoader(ByName(pairs), batch_size=128) for pairs in (case.train, case.queries)
    )
    attributor.cache(train)
    found = attributor.attribute(train, queries)
    assert attributor.total_proj_dim is not None
    return found, 4 * attributor.total_proj_dim


def lissa(case: Case, _: None, value: dict[str, Any]) -> tuple[Tensor, int]:
    """Return scores by LiSSA, which hands class numbers to the loss as floats."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return case.loss(outputs, targets.to(case.queries.tensors[1].dtype))

    attributor = IFAttributorLiSSA(task(case, loss), **value)
    train = case.batches(case.train)
    attributor.cache(train)
    return attributor.attribute(train, case.batches(case.queries)), 0


def influence(kind: type, queries_at_once: int | None, **fixed: Any) -> Callable[..., Any]:
    """Return a score function for an inner-product attributor; its setting is the damping."""

    def score(case: Case, _: None, value: dict[str, Any]) -> tuple[Tensor, int]:
        attributor = kind(task(case, case.loss), **fixed, **value)
        train = case.batches(case.train)
        attributor.cache(train)
        return attributor.attribute(train, case.batches(case.queries, queries_at_once)), 0

    return score


def explicit(case: Case, _: None, value: dict[str, Any]) -> tuple[Tensor, int]:
    """Return scores by the inverse Hessian itself, where the package can form it."""
    count = sum(weight.numel() for weight in case.network.parameters())
    if count > MOST_WEIGHTS_EXPLICIT:
        raise ValueError(
            f"left out: the package forms all {count:,} columns of the Hessian in one vmap over the "
            f"training set"
        )
    return influence(IFAttributorExplicit, None)(case, None, value)


def damped(name: str, option: str, values: tuple[float, ...] = DAMPINGS, **more: Any) -> dict:
    """Return settings: one a damping."""
    return {f"{name}-damping{value:g}": {option: value, **more} for value in values}


METHODS = (
    Method(
        "gradients",
        {"gradient-dot": False, "gradient-cosine": True},
        lambda case: None,
        gradient_products,
    ),
    Method(
        "trak",
        {f"trak-k{k}-ridge{ridge:g}": (k, ridge) for k in (512, 2048) for ridge in RIDGES},
        lambda case: None,
        trak,
    ),
    Method(
        "logra",
        {
            f"logra-k{width}-{'default' if damping is None else f'damping{damping:g}'}": (
                width,
                damping,
            )
            for width in (256, 4096)
            for damping in (None, 1e-2, 1e-1, 1.0)
        },
        lambda case: None,
        logra,
    ),
    Method(
        "ekfac",
        damped("ekfac", "damping", (0.0, *DAMPINGS)),
        lambda case: None,
        influence(IFAttributorEKFAC, None),
    ),
    Method(
        "cg",
        damped("cg10", "regularization", (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
        lambda case: None,
        influence(IFAttributorCG, QUERIES_AT_ONCE),
    ),
    Method(
        "cg100",
        damped("cg100", "regularization", (1e-2,), max_iter=100),
        lambda case: None,
        influence(IFAttributorCG, QUERIES_AT_ONCE),
    ),
    Method(
        "arnoldi",
        damped("arnoldi100", "regularization", (0.0, 1e-3, 1e-2, 1e-1))
        | damped("arnoldi300", "regularization", (1e-3, 1e-2), proj_dim=300, max_iter=300),
        lambda case: None,
        influence(IFAttributorArnoldi, None),
    ),
    Method(
        "datainf",
        damped("datainf", "regularization", (0.0, *DAMPINGS)),
        lambda case: None,
        influence(IFAttributorDataInf, QUERIES_AT_ONCE),
    ),
    Method(
        "lissa",
        {"lissa-default": {}},
        lambda case: None,
        lissa,
    ),
    Method("explicit", damped("explicit", "regularization"), lambda case: None, explicit),
)

if __name__ == "__main__":
    main("dattri", METHODS)
