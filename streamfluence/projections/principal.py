"""Principal projection: the span of the leading principal components of whitened gradients.

Many pairs of eigenvectors whiten a gradient well and cheaply, one number a pair, but whitened
gradients spread over so many of them that few pairs hold little; a few mixtures of all pairs
hold much more. LDS on the code transformer, rows in float32, fitted on its own 1,024 training
examples or on 4,096 to 8,192 other texts:

                      best pairs  1,024   2,048   4,096      mixtures   512   1,000
    its examples                   .357    .386    .410                .446    .479
    other texts                    .313    .367    .402                .383    .421
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfluence.capture.base import Block, Uses
from streamfluence.errors import InputError
from streamfluence.linalg import State
from streamfluence.projections._components import components, orthonormal
from streamfluence.projections._pairs import Pairs
from streamfluence.projections.base import Part, Projection

# Of a block's mean curvature. LDS at 1,000 mixtures on the digits MLP, the digits convolutional net, the
# code transformer and the digits MLP under momentum and under AdamW is .803 .544 .479 .744 .805, and
# .794 .547 .471 .743 .803 with .3; with .1 and W = (h + m / 10)^(-1/2), without the queries, .793 .508
# .483 .713 .788.
_FLOOR = 0.1

# Of the damping, less half the mean curvature of all weights. Where the damping is many times that mean,
# the first floor leaves directions in which damped products hold little. The MLP on large digits, damping
# 26 times the mean, has LDS .172 .211 .221 at 64, 256 and 512 bytes with the first floor alone, .195 .247
# .252 with both, and .243 by exact scores. Floors nearer to the damping come nearer to exact scores and no
# further. The half keeps every net as it is whose damping is below 9.6 times its mean curvature.
_DAMPED_FLOOR = 1 / 16
_UNDAMPED = 1 / 2


class Principal(Projection):
    """Features ``D^T vec(G)``, D an orthonormal basis of the span of ``W B``.

    W is diagonal in the coordinates of the eigenvector pairs, ``h^(1/2) / (h + m / 10)`` with h a pair's
    curvature and m the mean of h over all weights of its block, or in place of m / 10 a part of a large
    damping (see ``_DAMPED_FLOOR``): what whitens a gradient, times the
    root of the energy that whitened queries have there, as the curvature is the mean of gradients
    of examples that were not trained on. B are the leading principal components of the
    loss gradients times W: if the pairs are eigenvectors, the components that lose least of the
    products of whitened rows and queries, were queries read by a map of their own. Where the loss
    gradients span less than the width, the best pairs join them. The curvature of the features is
    measured after.

    The first two passes choose the pairs (see ``Pairs``), a third keeps whitened gradients. More of
    them find better components, see there: LDS is .434 .412 .409 with 1,024 components of 8,192, 2,048
    and 1,024 other texts (all pairs, W = (h + .3 m)^(-1/2)).

    Args:
        entries: Largest size of the mixture, pairs times width: what an example costs beside its
            pairs, in multiplications.
        pairs_per_feature: Most pairs a feature, which for few features are fewer than ``entries`` allows.
        rows_per_feature: Gradients that the components are made from at most, as a multiple of the width.
        candidates_per_feature: Pairs measured in the second pass, as a multiple of those kept.
        dense_limit, side_limit, rank: Of the moments, as those of ``spectral``.

    Source:
        Principal components of half-whitened gradients: a proposition of Eigenbasis-corrected One-bit
        Gradient Projection (2026), there of the coordinates of EK-FAC, and without a curvature
        measured in the features.
    """

    fitted = True
    passes = ("curvature", "both", "rows")
    damped = True

    def __init__(
        self,
        blocks: Sequence[Block],
        width: int,
        seed: int,
        *,
        entries: int = 1 << 25,
        pairs_per_feature: int = 32,
        rows_per_feature: int = 4,
        candidates_per_feature: int = 2,
        dense_limit: int = 1024,
        side_limit: int = 2048,
        rank: int = 256,
    ) -> None:
        super().__init__(blocks, width, seed)
        counts = {
            "entries": entries,
            "pairs_per_feature": pairs_per_feature,
            "rows_per_feature": rows_per_feature,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
        pairs = max(width, min(entries // width, pairs_per_feature * width))
        self._pairs = Pairs(
            blocks,
            pairs,
            seed,
            candidates_per_feature=candidates_per_feature,
            dense_limit=dense_limit,
            side_limit=side_limit,
            rank=rank,
        )
        self.most_rows = rows_per_feature * width
        self._mixture: Tensor | None = None

    def update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch; its tensors are reused, so do not keep the argument."""
        return self._pairs.update(state, uses, weight)

    def merge(self, a: State, b: State) -> State:
        """Return the state of both parts together."""
        if "kept" in a:
            return {"kept": torch.cat([a["kept"], b["kept"]])}
        return self._pairs.merge(a, b)

    def fit(self, state: State, examples: float) -> State:
        """Return the arrays of the candidate pairs, see ``Pairs.fit``."""
        return self._pairs.fit(state, examples)

    def load(self, arrays: State) -> None:
        """Make the projection ready to apply, or to refine, what ``fit`` or ``refine`` returned."""
        own = {key: arrays[key] for key in ("mixture", "shares") if key in arrays}
        self._pairs.load({key: value for key, value in arrays.items() if key not in own})
        self._mixture = own.get("mixture")
        self._arrays = dict(arrays)

    def refine_empty(self) -> State:
        """Return the state of the second pass, or of the third, over no examples."""
        if not self._pairs.measured:
            return self._pairs.refine_empty()
        return {"kept": torch.zeros(0, self._pairs.kept)}

    def refine_update(self, state: State, uses: Uses, weight: float) -> State:
        """Return ``state`` plus one batch of the second pass."""
        return self._pairs.refine_update(state, uses, weight)

    def refine_rows(self, state: State, uses: Uses) -> State:
        """Return ``state`` plus one batch of loss gradients, in the second pass or in the third."""
        if not self._pairs.measured:
            return self._pairs.refine_rows(state, uses)
        rows = self._pairs.apply(uses)
        return {"kept": torch.cat([state["kept"].to(rows.device), rows])}

    def refine(self, state: State, examples: float, damping: float = 0.0) -> State:
        """Return the arrays for ``load``: the best pairs, or after the third pass their mixture.

        The tensors of the third pass are overwritten.

        Raises:
            InputError: If the loss gradients of the sample are all zero.
        """
        if not self._pairs.measured:
            return self._pairs.refine(state, examples)
        scale = self._scale(damping).to(state["kept"].device)
        whitened = state["kept"].mul_(scale.float())
        if self._pairs.kept <= self.width:  # nothing to choose
            mixture, shares = torch.eye(self._pairs.kept), [1.0, 1.0]
        elif whitened.any():
            basis, *shares = components(whitened, self.width)
            span = basis.mul_(scale[:, None])
            span /= span.norm(dim=0)
            if lacking := self.width - span.shape[1]:
                span = torch.cat([span, self._best(whitened, lacking)], dim=1)
            mixture = orthonormal(span)
        else:
            raise InputError(
                "the loss gradients of the sample are all zero where there is curvature, so no direction "
                "matters; check that the checkpoint is the trained model, or raise sketch.examples"
            )
        return {
            **self._arrays,
            "mixture": mixture.float(),
            "shares": torch.tensor([*shares, len(whitened)]),
        }

    def to(self, device: torch.device | str) -> "Principal":
        """Return the projection with its arrays on ``device``."""
        self._pairs.to(device)
        self._mixture = None if self._mixture is None else self._mixture.to(device)
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """One part: the features mix all blocks."""
        assert self._mixture is not None, "the third pass has not been fitted"
        return (Part("all", self._mixture.shape[1]),)

    def apply(self, uses: Uses) -> Tensor:
        """Return features, shape ``(example, feature)``, float32."""
        assert self._mixture is not None, "the third pass has not been fitted"
        return self._pairs.apply(uses) @ self._mixture

    def facts(self) -> dict[str, Any]:
        """Return the pairs that are mixed, see ``Pairs.facts``, and how well.

        ``kept`` is the share of the energy of loss gradients times W in the components, of the
        ``components_of`` gradients they were made of, times the share of all energy in the pairs;
        ``kept_beyond`` an estimate of the same for other gradients.
        """
        facts = self._pairs.facts()
        pairs = {"pairs": self._pairs.kept, "pairs_kept": facts["kept"]}
        kept, beyond, rows = self._arrays["shares"].tolist()
        shares = {"kept": kept * facts["kept"], "kept_beyond": beyond * facts["kept"]}
        return {**facts, **pairs, **shares, "components_of": int(rows)}

    def _best(self, rows: Tensor, count: int) -> Tensor:
        """Return the ``count`` pairs of largest energy as columns, float64."""
        order = rows.square().sum(0).sort(descending=True, stable=True).indices
        return F.one_hot(order[:count], len(order)).T.double()

    def _scale(self, damping: float) -> Tensor:
        """Return the diagonal of W, shape ``(pair,)``, float64."""
        energy, mean = self._pairs.energies()
        least = _DAMPED_FLOOR * damping - _UNDAMPED * self._pairs.mean
        floor = (_FLOOR * mean).clamp_min(least)
        return torch.where(energy > 0, energy.sqrt() / (energy + floor), 0.0)
