"""The proof, before any sum, that what is measured of an example is its own."""

import torch

from streamfluence.layout import TRAINING_LOSS, sketch_stage
from streamfluence.run.session import session
from streamfluence.run.states import save_state
from streamfluence.sketching.plausible import plausibility
from streamfluence.sketching.sample import finite_examples


def coverage(run_path: str, device: str, checkpoint: int) -> None:
    """Prove on the first batch that rows are those of their examples, and commit the facts."""
    opened = session(run_path, device)
    feature, reader = opened.feature(checkpoint), opened.reader("train")
    first = torch.arange(min(8, opened.run.train.count))
    ids, batch = finite_examples(
        opened, checkpoint, first, opened.batch(reader.read(0, len(first)))
    )
    facts = feature.check(batch)
    for place, row in enumerate([] if feature.gradients else ids.tolist()):
        feature.refuse_padded(batch, place, opened.batch(reader.take([row])), TRAINING_LOSS)
    facts |= {
        "plausibility": plausibility(opened, checkpoint),
        "blocks": [
            {"name": b.name, "parameters": list(b.parameters), "size": b.size}
            for b in feature.blocks
        ],
    }
    save_state(opened.run, sketch_stage(checkpoint, "coverage"), 0, {}, facts)
