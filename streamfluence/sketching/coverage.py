"""The proof, before any sum, that what is measured of an example is its own."""

import torch

from streamfluence.layout import TRAINING_LOSS
from streamfluence.run.at_checkpoint import AtCheckpoint, checkpoint_unit
from streamfluence.run.sample import finite_examples
from streamfluence.sketching.plausible import plausibility


@checkpoint_unit
def coverage(at: AtCheckpoint) -> None:
    """Prove on the first batch that rows are those of their examples, and commit the facts."""
    session, feature = at.session, at.feature
    reader = session.reader("train")
    first = torch.arange(min(8, session.run.train.count))
    ids, batch = finite_examples(at, first, session.batch(reader.read(0, len(first))))
    facts = feature.check(batch)
    for place, row in enumerate([] if feature.gradients else ids.tolist()):
        feature.refuse_padded(batch, place, session.batch(reader.take([row])), TRAINING_LOSS)
    facts |= {
        "plausibility": plausibility(at),
        "blocks": [
            {"name": b.name, "parameters": list(b.parameters), "size": b.size}
            for b in feature.blocks
        ],
    }
    at.save("coverage", {}, facts)
