"""The proof, before any sum, that captured gradients are autograd's, and which weights they cover."""

from functools import partial
from typing import Any

import torch

from streamfluence.capture import Capture
from streamfluence.layout import sketch_stage
from streamfluence.run.session import Session, session
from streamfluence.run.states import save_state
from streamfluence.sketching.plausible import plausibility
from streamfluence.sketching.sample import finite_examples


def coverage(run_path: str, device: str, checkpoint: int) -> None:
    """Prove on the first batch that the captured gradients are autograd's, and commit the facts."""
    opened = session(run_path, device)
    capture = opened.capture(checkpoint)
    first = torch.arange(min(8, opened.run.train.count))
    rows = opened.batch(opened.reader("train").read(0, len(first)))
    _, batch = finite_examples(opened, checkpoint, first, rows)
    model = opened.model(checkpoint)
    # Coverage is proved in float32: bfloat16 rounds by more than a missed use would show.
    exact = opened.planned(model, partial(opened.forward_at, False)) if opened.half else capture
    exact.check(batch, opened.task.training_loss)
    facts = {
        "precision_cosine": _precision_cosine(opened, model, batch) if opened.half else None,
        "announcements": list(capture.announcements),
        **_covered(model, capture),
        "plausibility": plausibility(opened, checkpoint),
        "blocks": [
            {"name": b.name, "parameters": list(b.parameters), "size": b.size}
            for b in capture.blocks
        ],
    }
    save_state(opened.run, sketch_stage(checkpoint, "coverage"), 0, {}, facts)


def _covered(model: torch.nn.Module, capture: Capture) -> dict[str, Any]:
    """Return how many trainable parameters there are and take part, and the names of the others."""
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    covered = {name for block in capture.blocks for name in block.parameters}
    return {
        "trainable_parameters": sum(trainable.values()),
        "covered_parameters": sum(size for name, size in trainable.items() if name in covered),
        "left_out": [name for name in trainable if name not in covered],
    }


def _precision_cosine(opened: Session, model: Any, batch: Any) -> float:
    """Return the cosine between the batch's gradients in bfloat16 and in float32."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = []
    for half in (True, False):
        loss = opened.measured(opened.task.training_loss, model, batch, half).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat.append(torch.cat([g.to_dense().flatten().double() for g in found if g is not None]))
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
