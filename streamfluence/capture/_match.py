"""Find in a batch what forward returns of some of its examples when it runs without the others.

Each example is what it was in its batch, wherever a gradient arrives: the same outputs, and the
same loss by the targets, weights and whatever else is returned beside them. A model may cut its
padding to the longest of a batch; then what was cut has no gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from streamfluence.capture._claim import Claim
from streamfluence.capture._nested import leaves
from streamfluence.capture._numbers import largest, norm
from streamfluence.errors import CoverageError


class Changed(CoverageError):
    """What forward returns of an example depends on the rest of its batch."""


def matched(returned: Any, claim: Claim, order: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors with a gradient, each with the gradient that arrives there in the batch.

    Args:
        returned: What forward returned of some examples alone.
        claim: Of their batch.
        order: Their places in it.

    Raises:
        Changed: If what is returned of an example is not what it is in its batch.
    """
    again = leaves(returned)
    if len(again) != len(claim.pairs):
        raise Changed(
            f"forward returns {len(claim.pairs)} tensors for a batch, but {len(again)} for its "
            f"examples {_listed(order)} alone, so they have no gradient of their own"
        )
    found, tensors, places = [], [], []
    for tensor, (whole, cotangent) in zip(again, claim.pairs, strict=True):
        if cotangent is not None:
            place = _place(tensor.detach(), whole, cotangent, order, claim)
            places.append(place)
            found.append((tensor, cotangent[place]))
            tensor = whole[place]
        tensors.append(tensor)
    _refuse_other_losses(claim, claim.measured(returned, tensors), places, order)
    return [(tensor, cotangent) for tensor, cotangent in found if tensor.requires_grad]


Place = tuple[Tensor | slice, ...]


def _place(
    own: Tensor, whole: Tensor, cotangent: Tensor, order: Sequence[int], claim: Claim
) -> Place:
    """Return where in the batch the same is found."""
    rows, wanted = torch.tensor(order, device=whole.device), int(cotangent[order].count_nonzero())
    fitting = [
        place
        for place in _places(own, whole, rows)
        if int(cotangent[place].count_nonzero()) == wanted
    ]
    if not fitting:
        raise Changed(
            f"forward returns {tuple(own.shape)} for {len(order)} examples alone and "
            f"{tuple(whole.shape)} for their batch, so the two cannot be compared; return outputs "
            "in the batch's order whose shape does not depend on the rest of the batch"
        )
    size = claim.size(whole)
    for place in fitting:
        counts = cotangent[place] != 0
        seen, expected = (torch.where(counts, one, 0) for one in (own, whole[place]))
        if claim.precision.close(seen, expected, size):
            return place
    raise Changed(_moved(own, whole, fitting[0], order, claim))


def _places(own: Tensor, whole: Tensor, rows: Tensor) -> Iterator[Place]:
    """Yield where a tensor may come from: all of the examples, or without their ends or starts."""
    sizes = list(zip(own.shape[1:], whole.shape[1:], strict=False))
    if own.ndim != whole.ndim or len(own) != len(rows) or any(a > b for a, b in sizes):
        return
    yield rows, *(slice(0, size) for size, _ in sizes)
    if own.shape[1:] != whole.shape[1:]:
        yield rows, *(slice(full - size, full) for size, full in sizes)


def _refuse_other_losses(
    claim: Claim, alone: Sequence[Tensor], places: Sequence[Place], order: Sequence[int]
) -> None:
    """Refuse losses, and their gradients, that differ though they are measured on the same outputs."""
    names = ["loss", *["gradient of the loss"] * len(places)]
    outputs = [whole for whole, cotangent in claim.pairs if cotangent is not None]
    for at, example in enumerate(order):
        own = [whole[place][at] for whole, place in zip(outputs, places, strict=True)]
        size = max(map(largest, own), default=0.0)
        parts = zip(names, alone, claim.losses, [(order,), *places], strict=False)
        for name, found, whole, place in parts:
            one, other = found[at], whole[place][at]
            # A gradient at logits is a difference of probabilities.
            if not claim.precision.same_loss(
                one, other, size if name == "loss" else min(size, 1.0)
            ):
                raise Changed(
                    f"the {name} of example {example} changes with the other examples of its batch, "
                    f"{norm([other]):.6g} among them and {norm([one]):.6g} without, though its outputs "
                    "are the same: the targets, weights or whatever else forward returns beside them, "
                    "or the loss itself, mix the examples; return of each example what depends on it "
                    "alone"
                )


def _moved(own: Tensor, whole: Tensor, place: Place, order: Sequence[int], claim: Claim) -> str:
    """Return what happened to an example whose values are not where they belong."""
    everywhere, size = whole[slice(None), *place[1:]], claim.size(whole)

    def same(at: int, example: int) -> bool:
        found, expected = own[at : at + 1], everywhere[example : example + 1]
        return claim.precision.close(found, expected, size)

    at = next((at for at, example in enumerate(order) if not same(at, example)), 0)
    elsewhere = [example for example in range(len(whole)) if same(at, example)]
    if elsewhere and order[at] not in elsewhere:
        return (
            f"forward does not return its examples in the order of the batch: what it returns of "
            f"example {order[at]} comes at the place of example {elsewhere[0]}. Outputs and targets "
            "that are sorted or regrouped do not belong to the examples they stand at; put them back "
            "in the batch's order before returning them"
        )
    return (
        f"what forward returns of example {order[at]} changes with the other examples of its batch "
        "or with their order: the model mixes its examples, or treats them by their place in the "
        "batch, so they have no gradient of their own; return outputs in the batch's order that "
        "depend on their own example only"
    )


def _listed(order: Sequence[int]) -> str:
    names = [str(example) for example in dict.fromkeys(order)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
