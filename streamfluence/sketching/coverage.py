"""The proof, before any sum, that what is measured of an example is its own."""

import torch

from streamfluence.layout import TRAINING_LOSS, sketch_stage
from streamfluence.run.sample import finite_examples
from streamfluence.run.session import Session, worker_unit
from streamfluence.run.states import save_state
from streamfluence.sketching.plausible import plausibility


@worker_unit
def coverage(session: Session, checkpoint: int) -> None:
    """Prove on the first batch that rows are those of their examples, and commit the facts."""
    feature, reader = session.feature(checkpoint), session.reader("train")
    first = torch.arange(min(8, session.run.train.count))
    ids, batch = finite_examples(
        session, checkpoint, first, session.batch(reader.read(0, len(first)))
    )
    facts = feature.check(batch)
    for place, row in enumerate([] if feature.gradients else ids.tolist()):
        feature.refuse_padded(batch, place, session.batch(reader.take([row])), TRAINING_LOSS)
    facts |= {
        "plausibility": plausibility(session, checkpoint),
        "blocks": [
            {"name": b.name, "parameters": list(b.parameters), "size": b.size}
            for b in feature.blocks
        ],
    }
    save_state(session.run, sketch_stage(checkpoint, "coverage"), 0, {}, facts)
