"""Contract of a preconditioner: the inverse of a damped curvature, applied half to rows and half to queries.

Laws, for a curvature H and a damping: ``<for_queries(whiten(q)), for_rows(whiten(i))>`` is
``q^T (H + damping)^(-1) i``; ``redamp`` gives what a fresh one of the other damping would; ``whiten``
times its transpose is ``solve``; one made from its ``state`` is the same.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamfluence.linalg import State


class Preconditioner:
    """Base of every preconditioner; a decision stores its ``state`` under its ``name``.

    Attributes:
        name: By which the registry finds the class.
        couples: Whether the curvature joins directions, so that it takes many vectors a direction
            to know it, and not many in all.
    """

    name: ClassVar[str]
    couples: ClassVar[bool] = True

    @classmethod
    def from_state(cls, state: State) -> "Preconditioner":
        """Return the preconditioner that gave this ``state``."""
        raise NotImplementedError

    def state(self) -> State:
        """Return everything it consists of, as named tensors."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Number of features of a row."""
        raise NotImplementedError

    def whiten(self, rows: Tensor) -> Tensor:
        """Return ``(H + damping)^(-1/2) row`` up to a rotation, ``(example, feature)``, as the rows are."""
        raise NotImplementedError

    def for_rows(self, whitened: Tensor) -> Tensor:
        """Return whitened rows in the coordinates in which they are stored."""
        raise NotImplementedError

    def for_queries(self, whitened: Tensor) -> Tensor:
        """Return whitened queries so that ``<for_queries(y_q), for_rows(y_i)> = <y_q, y_i>``."""
        raise NotImplementedError

    def redamp(self, queries: Tensor, damping: Tensor | float) -> Tensor:
        """Return what ``for_queries`` gave, so that its product with stored rows uses another damping."""
        raise NotImplementedError

    def solve(self, rows: Tensor) -> Tensor:
        """Return ``(H + damping)^(-1) row`` for every row, in the original coordinates."""
        raise NotImplementedError

    def half_whitened(self, moments: Sequence[Tensor]) -> "tuple[Preconditioner, Tensor]":
        """Return the same product with rows in coordinates of which few hold most of what queries ask for.

        Args:
            moments: Second moments of rows before whitening, one a block, as the curvature's
                ``row_moments`` sums them.

        Returns:
            The preconditioner, and the energy of each coordinate, shape ``(feature,)``, float64: the
            root of that of rows, that of queries being about 1.
        """
        raise NotImplementedError

    def energies(self) -> Tensor:
        """Return the expected square of each whitened coordinate of the curvature's own vectors, float64."""
        raise NotImplementedError

    def facts(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return what a record says of every block, JSON-able; nothing where there is no curvature.

        Args:
            names: Of the blocks.

        Returns:
            ``name``, ``width``, ``damping``, ``mean_eigenvalue`` and ``effective_dimension``.
        """
        raise NotImplementedError

    def effective_dimension(self, damping: float | None = None) -> list[float]:
        """Return sum of value / (value + damping) of each block, of its own damping or another."""
        raise NotImplementedError

    def to(self, device: Any, dtype: torch.dtype = torch.float32) -> "Preconditioner":
        """Return the preconditioner ready to whiten rows on ``device``; spectra stay float64."""
        raise NotImplementedError
