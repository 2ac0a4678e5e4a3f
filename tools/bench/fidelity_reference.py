"""Attribution of a case's net by plain dense formulas; an answer the library must meet.

Shares nothing with streamfluence: ``torch.func`` derivatives of the task's own forward, dense
matrices, Cholesky solves. Scores are removal effects, (example, query): the predicted increase
of the query's loss if the example were removed, 1/n included.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from cases.base import Case, Split
from fidelity_training import Loss, unflatten
from torch import Tensor
from torch.func import grad, vjp, vmap

DOUBLE_UP_TO = 20_000  # weights; dense float64 matrices of larger nets do not fit


class Net:
    """One trained net and the derivatives every reference needs.

    Args:
        flat: Weights, ``(weight,)``.
        probes: Random sign vectors an example in place of the exact Gauss-Newton columns, for
            outputs too many to go through one by one.
        seed: Of the probes.

    Attributes:
        blocks: The part of the flat weights that each module owns.
        train, queries: Per-example loss gradients, ``(example, weight)``.
    """

    def __init__(
        self, case: Case, flat: Tensor, split: Split, probes: int | None = None, seed: int = 0
    ) -> None:
        self.loss = Loss(case)
        self.dtype = torch.float64 if len(flat) <= DOUBLE_UP_TO else torch.float32
        self.weights = next(unflatten(case, flat[None].to(self.dtype)))
        self.loss.network.to(self.dtype)
        self.blocks, self.shapes = _blocks(self.weights)
        self._probes, self._generator = probes, torch.Generator().manual_seed(seed)
        self._fields = self._tensors(split.train)
        self.train = self._gradients(self._fields)
        self.queries = self._gradients(self._tensors(split.queries))
        self.count = len(self.train)

    @cached_property
    def gauss_newton(self) -> dict[str, Tensor]:
        """Blocks of the mean over examples of J^T S J, each ``(weight, weight)``."""
        return self._gram(self.blocks)

    @cached_property
    def gauss_newton_joint(self) -> dict[str, Tensor]:
        """The same over all weights at once."""
        return self._gram(_ALL)

    @cached_property
    def fisher_joint(self) -> dict[str, Tensor]:
        """Mean over examples of gradient outer products."""
        return {"": self.train.T @ self.train / self.count}

    def curvature_rows(self, first: int, stop: int) -> Tensor:
        """Return rows whose outer products sum to J^T S J of these examples, ``(row, weight)``."""
        fields = {name: values[first:stop] for name, values in self._fields.items()}
        shape = self.loss.outputs(self.weights, fields)[0].shape[1:]
        if self._probes is None:
            columns = torch.eye(shape.numel(), dtype=self.dtype).view(-1, *shape)
            columns = columns.expand(stop - first, *columns.shape)
        else:
            size = (stop - first, self._probes, *shape)
            signs = torch.randint(0, 2, size, generator=self._generator, dtype=torch.int8)
            columns = (2.0 * signs - 1.0).to(self.dtype) / self._probes**0.5
        return vmap(self._pulled, randomness="error")(fields, columns).flatten(0, 1)

    def _pulled(self, fields: Mapping[str, Tensor], columns: Tensor) -> Tensor:
        def outputs(weights: dict[str, Tensor]) -> Tensor:
            return self.loss.outputs(weights, {k: v[None] for k, v in fields.items()})[0][0]

        found, pull = vjp(outputs, self.weights)[:2]
        return _flat(vmap(lambda column: pull(self._root(found, column))[0])(columns), 1)

    def _root(self, outputs: Tensor, vector: Tensor) -> Tensor:
        """Return B v with B B^T the Hessian of an example's loss in its outputs."""
        if self.loss.task.likelihood == "gaussian":
            return vector
        p = outputs.softmax(-1)
        root = p.sqrt() * vector - p * (p.sqrt() * vector).sum(-1, keepdim=True)
        mean = getattr(self.loss.task, "reduction", "sum") == "mean"
        return root / (outputs.numel() / outputs.shape[-1]) ** 0.5 if mean else root

    def _gram(self, blocks: Mapping[str, slice]) -> dict[str, Tensor]:
        sizes = {name: self.train[:1, part].shape[1] for name, part in blocks.items()}
        total = {name: torch.zeros(n, n, dtype=self.dtype) for name, n in sizes.items()}
        step = 64 if self._probes is None else max(512 // self._probes, 1)
        for first in range(0, self.count, step):
            rows = self.curvature_rows(first, min(first + step, self.count))
            for name, part in blocks.items():
                total[name].addmm_(rows[:, part].T, rows[:, part], alpha=1 / self.count)
        return total

    def _gradients(self, fields: Mapping[str, Tensor]) -> Tensor:
        def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
            return self.loss(weights, {k: v[None] for k, v in example.items()})[0]

        pieces = zip(*(values.split(64) for values in fields.values()), strict=True)
        chunks = [dict(zip(fields, piece, strict=True)) for piece in pieces]
        return torch.cat(
            [_flat(vmap(grad(loss), (None, 0))(self.weights, chunk), 1) for chunk in chunks]
        )

    def _tensors(self, fields: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(values) for name, values in fields.items()}
        return {n: t.to(self.dtype) if t.is_floating_point() else t for n, t in tensors.items()}


_ALL = {"": slice(None)}


def gradient_dot(net: Net) -> Tensor:
    """Return plain inner products over n."""
    return net.train @ net.queries.T / net.count


def damped(net: Net, curvature: Mapping[str, Tensor], damping: float) -> Tensor:
    """Return ``g_i^T (H + damping)^-1 g_q / n`` summed over the blocks of H."""
    total = torch.zeros(net.count, len(net.queries), dtype=net.dtype)
    for name, block in curvature.items():
        part = net.blocks.get(name, slice(None))
        total += solve_scores(net.train[:, part], net.queries[:, part], block, damping)
    return total / net.count


def damped_from_rows(net: Net, dampings: Sequence[float]) -> dict[float, Tensor]:
    """Return what ``damped`` gives by layer for each damping, from the curvature's rows.

    With fewer rows than a block has weights their inner products are the smaller matrix:
    ``(R^T R + c)^-1 = (1 - R^T (R R^T + c)^-1 R) / c`` (Woodbury). All rows are held at once.
    """
    pieces = [net.curvature_rows(i, min(i + 64, net.count)) for i in range(0, net.count, 64)]
    every = torch.cat(pieces)
    shape = (net.count, len(net.queries))
    total = {damping: torch.zeros(shape, dtype=torch.float64) for damping in dampings}
    for part in net.blocks.values():
        rows, train, queries = every[:, part], net.train[:, part], net.queries[:, part]
        gram = (rows @ rows.T).double() / net.count
        left, right = (train @ rows.T).double(), (rows @ queries.T).double() / net.count
        plain = (train @ queries.T).double()
        for damping in dampings:
            total[damping] += (plain - solve_scores(left, right.T, gram, damping)) / damping
    return {damping: scores / net.count for damping, scores in total.items()}


def solve_scores(train: Tensor, queries: Tensor, curvature: Tensor, damping: float) -> Tensor:
    """Return ``train (curvature + damping)^-1 queries^T`` by Cholesky."""
    shifted = curvature.clone()
    shifted.diagonal().add_(damping)
    return train @ torch.cholesky_solve(queries.T, torch.linalg.cholesky(shifted))


def eigenvalue_corrected(net: Net) -> Callable[[float], Tensor]:
    """Return EK-FAC scores as a function of damping: exact values in a Kronecker-factored basis.

    A block without a matrix (the two vectors of a norm) is solved exactly.
    """
    turned = []
    for name, block in net.gauss_newton.items():
        part = net.blocks[name]
        train, queries = net.train[:, part], net.queries[:, part]
        shape = net.shapes[name]
        if shape is None:
            turned.append((train, queries, *torch.linalg.eigh(block)))
            continue
        order = bias_last(*shape, len(block))
        left, right, values = kronecker(block[order][:, order], shape[0])
        sides = [_turn(rows[:, order], left, right) for rows in (train, queries)]
        turned.append((*sides, values.flatten(), None))

    def scores(damping: float) -> Tensor:
        total = torch.zeros(net.count, len(net.queries), dtype=net.dtype)
        for train, queries, values, basis in turned:
            if basis is not None:
                train, queries = train @ basis, queries @ basis
            total += (train / (values + damping)) @ queries.T
        return total / net.count

    return scores


def kronecker(block: Tensor, n_outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return output basis, input basis and the values ``(output, input)`` of one block.

    Args:
        block: Curvature of a matrix flattened by rows, one row an output.
    """
    block = block.view(n_outputs, -1, n_outputs, len(block) // n_outputs)
    # E[sum of squares over one side] of the exact Gauss-Newton rows is a trace over that side.
    left = torch.linalg.eigh(torch.einsum("aibi->ab", block)).eigenvectors
    right = torch.linalg.eigh(torch.einsum("aiaj->ij", block)).eigenvectors
    half = torch.einsum("aibj,au,bu->iju", block, left, left)
    return left, right, torch.einsum("iju,iv,jv->uv", half, right, right)


def bias_last(rows: int, columns: int, size: int) -> Tensor:
    """Return the order that turns ``[W, b]`` of one layer into rows ``[w_a, b_a]``; b may be missing."""
    weight = torch.arange(rows * columns).view(rows, columns)
    return torch.cat([weight, torch.arange(rows * columns, size).view(rows, -1)], 1).flatten()


def _turn(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (left.T @ rows.view(-1, len(left), len(right)) @ right).flatten(1)


def _blocks(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, slice], dict[str, tuple[int, int] | None]]:
    """Return the slice of each module's weights, and outputs and inputs of its matrix, if it has one."""
    blocks: dict[str, slice] = {}
    shapes: dict[str, tuple[int, int] | None] = {}
    first = 0
    for name, weight in weights.items():
        owner = name.rpartition(".")[0]
        start = blocks[owner].start if owner in blocks else first
        first += weight.numel()
        blocks[owner] = slice(start, first)
        if owner not in shapes:
            matrix = weight.dim() > 1
            shapes[owner] = (len(weight), weight[0].numel()) if matrix else None
    return blocks, shapes


def _flat(weights: Mapping[str, Tensor], from_axis: int) -> Tensor:
    return torch.cat([weight.flatten(from_axis) for weight in weights.values()], from_axis)
