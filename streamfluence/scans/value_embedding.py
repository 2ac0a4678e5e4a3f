"""Data value embedding: the effect of one step of SGD, carried through all later ones."""

from typing import Literal

import torch
from torch import Tensor

from streamfluence.linalg import State
from streamfluence.scans.base import EMBEDDINGS, Scan

TRANSITION = "transition"


class ValueEmbedding(Scan):
    """``rate (I - rate H_T) ... (I - rate H_(t+1)) g`` of an example with the gradient g at step t.

    H of a step is the curvature of its own batch at the weights before it; what the recursion of
    the paper sums up is the identity less the product here. For plain SGD, with or without weight
    decay. One matrix of the width of a row, and as many multiplications with it as a step has vectors.

    Args:
        curvature: ``gauss_newton`` of each batch, or its empirical ``fisher`` as in the paper, which
            needs no vectors but the gradients, and holds for small steps alone.

    Source:
        Wang et al., Capturing the Temporal Dependence of Training Data Influence,
        https://arxiv.org/abs/2412.09538; there with the empirical Fisher matrix.
    """

    def __init__(self, *, curvature: Literal["gauss_newton", "fisher"] = "gauss_newton") -> None:
        self.source = "probes" if curvature == "gauss_newton" else "loss"

    def empty(self, width: int, dtype: torch.dtype = torch.float64) -> State:
        return {
            EMBEDDINGS: torch.empty(0, width, dtype=dtype),
            TRANSITION: torch.eye(width, dtype=dtype),
        }

    def step(
        self,
        state: State,
        rows: Tensor,
        rate: float,
        vectors: Tensor | None = None,
        decay: float = 0.0,
    ) -> State:
        after = state[TRANSITION]
        rows = rows.to(after)
        arriving = rows @ after.T
        vectors, carried = (rows, arriving) if vectors is None else _carried(vectors, after)
        return {
            EMBEDDINGS: torch.cat([rate * arriving, state[EMBEDDINGS]]),
            TRANSITION: (1 - decay) * after - rate * carried.T @ vectors,
        }

    def combine(self, earlier: State, later: State) -> State:
        after = later[TRANSITION]
        return {
            EMBEDDINGS: torch.cat([earlier[EMBEDDINGS] @ after.T, later[EMBEDDINGS]]),
            TRANSITION: after @ earlier[TRANSITION],
        }

    def carry(self, state: State, directions: Tensor) -> Tensor:
        return directions @ state[TRANSITION]


def _carried(vectors: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    vectors = vectors.to(after)
    return vectors, vectors @ after.T
