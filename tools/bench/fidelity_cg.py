"""Exact influence of nets whose curvature does not fit as a matrix: conjugate gradients over all weights.

Shares nothing with streamfluence. H is only ever multiplied: forward mode gives J v, the Hessian of
the loss in the outputs S J v, one backward pass J^T S J v. A thousand random products, made once,
give a preconditioner after which a dozen steps are enough.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from cases.base import Case, Split
from fidelity_training import Loss, unflatten
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

with warnings.catch_warnings():
    # Forward mode imports this on first use, and it calls torch's own deprecated torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    import_module("torch._decomp.decompositions_for_jvp")

Product = Callable[[Tensor], Tensor]


class Linearised:
    """One net and its derivatives along vectors over all its weights, ``(vector, weight)``.

    Args:
        flat: Weights, ``(weight,)``; their dtype is that of the arithmetic.
        batch, at_once: Examples and vectors that are multiplied together, for speed alone.
    """

    def __init__(
        self, case: Case, flat: Tensor, split: Split, batch: int = 128, at_once: int = 64
    ) -> None:
        self.loss, self.dtype = Loss(case), flat.dtype
        self.weights = next(unflatten(case, flat[None]))
        self.loss.network.to(flat.dtype)
        self._train, self._queries = self._tensors(split.train), self._tensors(split.queries)
        self.count, self._batch, self._at_once = split.count, batch, at_once

    def products(self, vectors: Tensor) -> Tensor:
        """Return ``H v`` of each vector, H the mean over the training set of ``J^T S J``."""
        return torch.cat([self._products(some) for some in vectors.split(self._at_once)])

    def damped(self, damping: float) -> Product:
        """Return the product with ``H + damping``."""
        return lambda vectors: self.products(vectors) + damping * vectors

    def query_gradients(self) -> Tensor:
        """Return the loss gradient of every query, ``(query, weight)``."""

        def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
            return self.loss(weights, {k: v[None] for k, v in example.items()})[0]

        each = vmap(grad(loss), (None, 0))
        return torch.cat([_flat(each(self.weights, some)) for some in self._batches(self._queries)])

    def removal_effects(self, solutions: Tensor) -> Tensor:
        """Return ``g_i^T x / n`` for every training example i and solution x, ``(example, query)``."""
        return torch.cat(
            [
                torch.cat([self._slopes(some, x).T for x in solutions.split(self._at_once)], 1)
                for some in self._batches(self._train)
            ]
        ).div_(self.count)

    def _products(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for some in self._batches(self._train):
            total += self._product(some, vectors)
        return total.div_(self.count)

    def _product(self, batch: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
        def outputs(weights: dict[str, Tensor]) -> Tensor:
            return self.loss.outputs(weights, batch)[0]

        found, pull = vjp(outputs, self.weights)[:2]
        targets = self.loss.outputs(self.weights, batch)[1]

        def slope(at: Tensor) -> Tensor:
            found: Tensor = grad(lambda o: self.loss.of(o, targets).sum())(at)
            return found

        def along(vector: Tensor) -> dict[str, Tensor]:
            moved = jvp(outputs, (self.weights,), (self._unflat(vector),))[1]
            pulled: dict[str, Tensor] = pull(jvp(slope, (found,), (moved,))[1])[0]
            return pulled

        return _flat(vmap(along)(vectors))

    def _slopes(self, batch: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
        def losses(weights: dict[str, Tensor]) -> Tensor:
            return self.loss(weights, batch)

        along = vmap(lambda v: jvp(losses, (self.weights,), (self._unflat(v),))[1])
        slopes: Tensor = along(vectors)
        return slopes

    def _unflat(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([weight.numel() for weight in self.weights.values()])
        pairs = zip(self.weights.items(), parts, strict=True)
        return {name: part.view(weight.shape) for (name, weight), part in pairs}

    def _batches(self, fields: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        pieces = zip(*(values.split(self._batch) for values in fields.values()), strict=True)
        return (dict(zip(fields, piece, strict=True)) for piece in pieces)

    def _tensors(self, fields: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(values) for name, values in fields.items()}
        return {n: t.to(self.dtype) if t.is_floating_point() else t for n, t in tensors.items()}


@dataclass(frozen=True)
class Nystrom:
    """A low-rank H from its products with random vectors; the preconditioner of ``H + damping``.

    Attributes:
        basis: Orthonormal columns, ``(weight, rank)``.
        values: Of H along them, falling, ``(rank,)``.

    Source:
        Frangella, Tropp and Udell, Randomized Nystroem Preconditioning (2021), Algorithms 2.1 and
        5.1, https://arxiv.org/abs/2110.02820.
    """

    basis: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, product: Product, size: int, rank: int, dtype: torch.dtype, seed: int = 0
    ) -> "Nystrom":
        """Return the approximation from ``rank`` products with H of ``size`` weights."""
        generator = torch.Generator().manual_seed(seed)
        probes = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=dtype)).Q
        image = product(probes.T.contiguous()).T.double()
        probes = probes.double()
        shift = torch.finfo(dtype).eps * image.norm()  # H has rounding of this size
        image += shift * probes
        inner = probes.T @ image
        factor = torch.linalg.cholesky((inner + inner.T) / 2)
        thin = torch.linalg.solve_triangular(factor, image.T, upper=False).T
        squares, turn = torch.linalg.eigh(thin.T @ thin)
        squares, turn = squares.flip(0), turn.flip(1)
        basis = thin @ turn / squares.sqrt()
        return cls(basis.to(dtype), (squares - shift).clamp_min(0).to(dtype))

    def inverse(self, damping: float) -> Product:
        """Return the product with about ``(damping + smallest value) / (H + damping)``."""
        scale = (self.values[-1] + damping) / (self.values + damping) - 1
        return lambda vectors: vectors + (vectors @ self.basis * scale) @ self.basis.T


@dataclass(frozen=True)
class Solved:
    """Solutions ``(query, weight)``; the largest ``|b - A x| / |b|``, computed anew; the steps taken."""

    solution: Tensor
    residual: float
    steps: int


def solve(
    product: Product,
    right: Tensor,
    precondition: Product,
    tolerance: float,
    most_steps: int = 200,
    progress: Callable[[str], None] = lambda line: None,
) -> Solved:
    """Return x with ``product(x) = right``, row by row, by preconditioned conjugate gradients."""
    solution, residual = torch.zeros_like(right), right.clone()
    nearer = precondition(residual)
    direction, energy = nearer.clone(), (residual * nearer).sum(1, keepdim=True)
    norm, steps = right.norm(dim=1).clamp_min(1e-38), 0  # a query without gradient: solution zero
    while steps < most_steps and (residual.norm(dim=1) > tolerance * norm).any():
        image = product(direction)
        length = energy / (direction * image).sum(1, keepdim=True).clamp_min(1e-38)
        solution += length * direction
        residual -= length * image
        nearer = precondition(residual)
        before, energy = energy, (residual * nearer).sum(1, keepdim=True)
        direction = nearer + energy / before.clamp_min(1e-38) * direction
        steps += 1
        progress(f"step {steps}: residual {float((residual.norm(dim=1) / norm).max()):.2e}")
    left = (right - product(solution)).norm(dim=1) / norm
    return Solved(solution, float(left.max()), steps)


def _flat(weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([weight.flatten(1) for weight in weights.values()], 1)
