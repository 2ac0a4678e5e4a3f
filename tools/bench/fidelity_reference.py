"""Attribution of the small net by plain float64 formulas; an answer the library must meet.

Shares nothing with streamfluence: ``torch.func`` derivatives, dense matrices,
Cholesky solves. Scores are removal effects, (example, query): the predicted
increase of the query's loss if the example were removed, 1/n included.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from fidelity_truth import N_CLASSES, N_HIDDEN, N_INPUTS, Digits
from torch import Tensor
from torch.func import grad, jacrev, vmap

N_FIRST = (N_INPUTS + 1) * N_HIDDEN
LAYERS = (slice(0, N_FIRST), slice(N_FIRST, None))
SHAPES = ((N_HIDDEN, N_INPUTS), (N_CLASSES, N_HIDDEN))  # outputs, inputs of each layer


class Net:
    """One trained net and the derivatives every reference needs, float64.

    Attributes:
        train, queries: Per-example loss gradients, ``(example, weight)``.
        fisher: Empirical Fisher, mean over examples of gradient outer products.
        gauss_newton: Mean over examples of J^T (diag(p) - p p^T) J, exact.
    """

    def __init__(self, weights: Tensor, data: Digits) -> None:
        self.weights, self.data = weights.double(), data
        self.train = _gradients(_loss, self.weights, data.train_x, data.train_y)
        self.queries = _gradients(_loss, self.weights, data.query_x, data.query_y)
        self.count = len(self.train)

    @cached_property
    def fisher(self) -> Tensor:
        return self.train.T @ self.train / self.count

    @cached_property
    def gauss_newton(self) -> Tensor:
        return self.project_gauss_newton(lambda rows: rows)

    @cached_property
    def margins(self) -> Tensor:
        """Gradients of the margin log p_y - log(1 - p_y) of the training examples."""
        return _gradients(_margin, self.weights, self.data.train_x, self.data.train_y)

    @cached_property
    def label_probability(self) -> Tensor:
        p = _outputs(self.weights, self.data.train_x.double()).softmax(-1)
        return p.gather(1, self.data.train_y.unsqueeze(1)).squeeze(1)

    def project_gauss_newton(self, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the exact Gauss-Newton matrix of projected gradients, summed over square-root columns."""
        total = None
        for x in self.data.train_x.double().split(200):
            jacobian = vmap(jacrev(_outputs), (None, 0))(self.weights, x)
            root = vmap(_root)(_outputs(self.weights, x))
            rows = project(torch.einsum("ncp,nck->nkp", jacobian, root).flatten(0, 1))
            total = rows.T @ rows if total is None else total + rows.T @ rows
        return total / self.count

    @cached_property
    def kronecker(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """EK-FAC with exact factors and values: output basis, input basis, values of each layer."""
        factors = []
        for layer, (outputs, inputs) in zip(LAYERS, SHAPES, strict=True):
            order = _bias_last(outputs, inputs)
            block = self.gauss_newton[layer, layer][order][:, order]
            block = block.view(outputs, inputs + 1, outputs, inputs + 1)
            # E[sum of squares over one side] of the exact Gauss-Newton rows is a trace over that side.
            left = torch.linalg.eigh(torch.einsum("aibi->ab", block)).eigenvectors
            right = torch.linalg.eigh(torch.einsum("aiaj->ij", block)).eigenvectors
            half = torch.einsum("aibj,au,bu->iju", block, left, left)
            values = torch.einsum("iju,iv,jv->uv", half, right, right)
            factors.append((left, right, values))
        return factors


def gradient_dot(net: Net) -> Tensor:
    """Return plain inner products over n."""
    return net.train @ net.queries.T / net.count


def damped(net: Net, curvature: Tensor, damping: float, by_layer: bool) -> Tensor:
    """Return ``g_i^T (H + damping)^-1 g_q / n`` with the whole matrix or its diagonal blocks by layer."""
    total = 0
    for layer in LAYERS if by_layer else (slice(None),):
        total = total + solve_scores(
            net.train[:, layer], net.queries[:, layer], curvature[layer, layer], damping
        )
    return total / net.count


def solve_scores(train: Tensor, queries: Tensor, curvature: Tensor, damping: float) -> Tensor:
    """Return ``train (curvature + damping)^-1 queries^T`` by Cholesky."""
    shifted = curvature + damping * torch.eye(len(curvature), dtype=curvature.dtype)
    return train @ torch.cholesky_solve(queries.T, torch.linalg.cholesky(shifted))


def eigenvalue_corrected(net: Net, damping: float) -> Tensor:
    """Return EK-FAC scores."""
    total = 0
    for layer, (outputs, inputs), basis in zip(LAYERS, SHAPES, net.kronecker, strict=True):
        left, right, values = basis
        order = _bias_last(outputs, inputs)
        train, queries = (
            left.T @ gradients[:, layer][:, order].view(-1, outputs, inputs + 1) @ right
            for gradients in (net.train, net.queries)
        )
        total = total + (train / (values + damping)).flatten(1) @ queries.flatten(1).T
    return total / net.count


def dense_projection(width: int, n_weights: int, seed: int = 0) -> Tensor:
    """Return a Gaussian matrix ``(weight, feature)`` with E[P P^T] = I."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_weights, width, generator=generator, dtype=torch.float64) / width**0.5


def trak(net: Net, projection: Tensor, damping: float) -> Tensor:
    """Return TRAK's form as a removal effect: margin features, loss residual 1 - p, R-weighted Gram."""
    features, queries = net.margins @ projection, net.queries @ projection
    residual = 1 - net.label_probability
    weight = residual * net.label_probability
    gram = (features * weight.unsqueeze(1)).T @ features / net.count
    return solve_scores(-features * residual.unsqueeze(1), queries, gram, damping) / net.count


def _outputs(weights: Tensor, x: Tensor) -> Tensor:
    first, first_bias, second, second_bias = weights.split(
        (N_HIDDEN * N_INPUTS, N_HIDDEN, N_CLASSES * N_HIDDEN, N_CLASSES)
    )
    hidden = (x @ first.view(N_HIDDEN, N_INPUTS).T + first_bias).relu()
    return hidden @ second.view(N_CLASSES, N_HIDDEN).T + second_bias


def _loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return -_outputs(weights, x).log_softmax(-1).gather(0, y.view(1)).squeeze(0)


def _margin(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    outputs = _outputs(weights, x)
    others = outputs.scatter(0, y.view(1), torch.full((1,), -torch.inf, dtype=outputs.dtype))
    return outputs.gather(0, y.view(1)).squeeze(0) - others.logsumexp(0)


def _root(outputs: Tensor) -> Tensor:
    """Return B with B B^T = diag(p) - p p^T."""
    p = outputs.softmax(-1)
    return p.sqrt().diag() - torch.outer(p, p.sqrt())


def _gradients(function, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return vmap(grad(function), (None, 0, 0))(weights, x.double(), y)


def _bias_last(rows: int, columns: int) -> Tensor:
    """Return the order that turns ``[W, b]`` of one layer into rows ``[w_a, b_a]``."""
    weight = torch.arange(rows * columns).view(rows, columns)
    bias = rows * columns + torch.arange(rows).unsqueeze(1)
    return torch.cat([weight, bias], dim=1).flatten()
