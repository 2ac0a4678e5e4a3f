"""Lists of the best examples kept on a device while blocks of scores pass: `_ranking` in torch.

Only scores that beat the last one listed are looked at, so that a block costs two passes over
its scores and a sort of the few that are left.
"""

import torch
from torch import Tensor

from streamfluence.readouts.base import DeviceBlock

_SIGNS = {"positive": 1, "negative": -1}
Lists = dict[str, Tensor]


def wanted(block: DeviceBlock, last: Lists | None, length: int) -> Tensor:
    """Return which scores may be listed, a mask of the shape of the scores.

    Args:
        last: The last score of each full list, shape ``(query,)``; None where a list is not full.
        length: Of the lists.
    """
    scores = block.tensor
    if not len(scores):
        return scores.bool()
    if last is None:
        first = _last_of_block(block, length)
        mask = (scores >= first["positive"]) | (scores <= first["negative"])
    else:
        # A score equal to the last listed has a later row, and loses.
        mask = (scores > last["positive"]) | (scores < last["negative"])
    return mask.logical_and_(block.usable[:, None])


def places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and example of every score in a mask, by query, then by example."""
    example, query = mask.nonzero().unbind(1)
    query, order = query.sort(stable=True)
    return query, example[order]


def _last_of_block(block: DeviceBlock, length: int) -> dict[str, Tensor]:
    """Return the score at the end of the block's own lists, ties not yet settled."""
    found = {}
    for side, sign in _SIGNS.items():
        scores = block.tensor.masked_fill(~block.usable[:, None], -sign * torch.inf)
        count = min(length, len(scores))
        best = scores.topk(count, dim=0, largest=sign > 0, sorted=False).values
        found[side] = best.amin(0) if sign > 0 else best.amax(0)
    return found


def listed(query: Tensor, fields: Lists, n_queries: int) -> Lists:
    """Return candidates, ordered by query, as one padded line a query."""
    counts = torch.bincount(query, minlength=n_queries)
    place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    longest = int(counts.max()) if n_queries else 0
    lines = {}
    for name, values in fields.items():
        lines[name] = values.new_full((n_queries, longest), _padding(values))
        lines[name][query, place] = values
    return lines


def best_of(a: Lists, b: Lists, sign: int, length: int) -> Lists:
    """Return the ``length`` best of both by ``scores``; among equals those of ``a``, then the first."""
    both = {name: torch.cat([a[name], b[name]], dim=1) for name in a}
    # NaN, the padding, comes last.
    order = (-sign * both["scores"]).sort(dim=1, stable=True).indices[:, :length]
    best = {name: values.gather(1, order) for name, values in both.items()}
    missing = length - order.shape[1]
    return {
        name: torch.nn.functional.pad(values, (0, missing), value=_padding(values))
        for name, values in best.items()
    }


def _padding(values: Tensor) -> float:
    return torch.nan if values.is_floating_point() else -1
