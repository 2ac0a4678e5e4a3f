"""pyDVL (PyPI): influence by Nystroem, Arnoldi, CG, EK-FAC, harmonic mean and the whole matrix.

Its ``influences`` are the query's loss gradient times the damped inverse times the example's loss
gradient: positive where removing the example raises the query's loss. It keeps nothing of an
example: every product computes the example's gradient again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from _case import Case, Method, main
from pydvl.influence.torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InverseHarmonicMeanInfluence,
    NystroemSketchInfluence,
)
from pydvl.influence.torch.util import BlockMode, SecondOrderMode
from torch import Tensor

BATCH = 128
DAMPINGS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MOST_WEIGHTS_DIRECT = 6000


def products(case: Case, fitted: Any) -> Tensor:
    """Return scores ``(example, query)``."""
    # Factors first: `influences` would solve for all queries again with every batch of examples.
    factors = fitted.influence_factors(*case.queries.tensors)
    found = [
        fitted.influences_from_factors(factors, x, y) for x, y in case.batches(case.train, BATCH)
    ]
    return torch.cat(found, dim=1).T


def refitted(make: Callable[[Case, float], Any]) -> dict[str, Callable[..., Any]]:
    """Return prepare and score of a method that is fitted once and damped again."""

    def score(case: Case, fitted: Any, damping: float) -> tuple[Tensor, int]:
        return products(case, fitted.with_regularization(damping)), 0

    return {
        "prepare": lambda case: make(case, DAMPINGS[0]).fit(case.batches(case.train, BATCH)),
        "score": score,
    }


def named(name: str, values: tuple[float, ...] = DAMPINGS) -> Mapping[str, float]:
    """Return settings: one a damping."""
    return {f"{name}-damping{value:g}": value for value in values}


def nystroem(rank: int, mode: SecondOrderMode = SecondOrderMode.HESSIAN) -> Method:
    """Return Nystroem's sketch of a rank, of the Hessian or of the package's Gauss-Newton."""
    name = f"nystroem{rank}" + ("" if mode is SecondOrderMode.HESSIAN else "-gauss-newton")

    def make(case: Case, damping: float) -> Any:
        return NystroemSketchInfluence(
            case.network, case.loss, damping, rank=rank, second_order_mode=mode
        )

    return Method(name, named(name), **refitted(make))


def arnoldi(rank: int) -> Method:
    """Return the leading eigenpairs of the Hessian; rank 10 is the package's default."""
    name = f"arnoldi{rank}"

    def make(case: Case, damping: float) -> Any:
        return ArnoldiInfluence(case.network, case.loss, damping, rank=rank)

    return Method(name, named(name), **refitted(make))


def direct(name: str, **options: Any) -> Method:
    """Return the whole matrix, solved."""

    def make(case: Case, damping: float) -> Any:
        count = sum(weight.numel() for weight in case.network.parameters())
        if count > MOST_WEIGHTS_DIRECT:
            raise ValueError(f"left out: the matrix of {count:,} weights does not fit")
        return DirectInfluence(case.network, case.loss, damping, **options)

    return Method(name, named(name), **refitted(make))


def conjugate_gradients(case: Case, _: None, damping: float) -> tuple[Tensor, int]:
    """Return scores by conjugate gradients on the Hessian, all queries at once."""
    fitted = CgInfluence(
        case.network,
        case.loss,
        damping,
        maxiter=100,
        solve_simultaneously=True,
        warn_on_max_iteration=False,
    ).fit(case.batches(case.train))
    return products(case, fitted), 0


def ekfac(update: bool) -> Method:
    """Return EK-FAC, with or without the measured eigenvalues; the package's default has not."""
    name = "ekfac-updated" if update else "ekfac"

    def prepare(case: Case) -> EkfacInfluence:
        fitted = EkfacInfluence(case.network, update_diagonal=update)
        return fitted.fit(case.batches(case.train, BATCH))

    def score(case: Case, fitted: EkfacInfluence, damping: float) -> tuple[Tensor, int]:
        fitted.hessian_regularization = damping
        return products(case, fitted), 0

    return Method(name, named(name, (0.0, *DAMPINGS)), prepare, score)


def harmonic_mean() -> Method:
    """Return DataInf's inverse: the mean of the inverses of rank-one updates."""

    def make(case: Case, damping: float) -> Any:
        return InverseHarmonicMeanInfluence(case.network, case.loss, damping)

    return Method("harmonic-mean", named("harmonic-mean"), **refitted(make))


METHODS = (
    nystroem(100),
    nystroem(300),
    nystroem(1000),
    nystroem(300, SecondOrderMode.GAUSS_NEWTON),
    arnoldi(10),
    arnoldi(100),
    Method("cg", named("cg100", (1e-3, 3e-3, 1e-2, 3e-2)), lambda case: None, conjugate_gradients),
    ekfac(False),
    ekfac(True),
    harmonic_mean(),
    direct("direct"),
    direct("direct-by-layer", block_structure=BlockMode.LAYER_WISE),
)

if __name__ == "__main__":
    main("pydvl", METHODS)
