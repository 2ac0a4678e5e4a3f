"""The task: your model, how to run it on a batch, and what its outputs mean.

Replace the places marked REPLACE. As it stands it is complete: `python task.py` writes
small made-up data and a trained checkpoint, and `streamfluence run job.toml` then works.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

# What the outputs mean:
#   "categorical"  logits (example, ..., class) and class numbers (example, ...), or soft labels
#                  of the logits' shape; the loss is cross-entropy
#   "bernoulli"    logits and targets in [0, 1] of the same shape, (example,) or (example, ...)
#   "gaussian"     predictions and targets of the same shape; `variance = 1.0` of the noise
# Targets that do not count are NaN or `ignore_index` (-100 for class numbers). Several outputs
# an example (a sequence) are summed; `reduction = "mean"` averages them: choose what training
# did. Where training minimised another loss than this one (label smoothing, say), define
# `training_loss(outputs, targets)` as well; queries and curvature keep the likelihood's. For a
# loss of another kind, define `loss(model, batch)` with one number an example instead of
# `likelihood` and `forward`; the curvature is then the empirical Fisher, which is less faithful.
likelihood = "categorical"


def network() -> nn.Module:
    """REPLACE: your architecture."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def model(checkpoint: str) -> nn.Module:
    """Return the model with the weights of one checkpoint file, in eval mode."""
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
    return net.eval()


def forward(net: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return (outputs, targets), or (outputs, targets, weights), of a batch of tensors by field."""
    return net(batch["x"]), batch["label"]


# Optional. What a query may ask about besides "loss" and "margin", by the name a job gives as
# `measurement`: one number an example, lower is better.
measurements = {
    "error_probability": lambda outputs, targets: (
        1 - outputs.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    ),
}


# Optional. `streamfluence evaluate` retrains on subsets with it, to test whether the scores
# predict what retraining does. The same indices and seed must give the same weights.
def train(indices: np.ndarray, seed: int) -> dict[str, torch.Tensor]:
    """REPLACE: return the state_dict after training on the rows `indices` of the training set."""
    torch.manual_seed(seed)
    stored = [np.load(path) for path in sorted(Path(__file__).parent.glob("data/train-*.npz"))]
    x, label = (
        torch.from_numpy(np.concatenate([shard[field] for shard in stored])[indices])
        for field in ("x", "label")
    )
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()
    return net.state_dict()


def make_placeholder() -> None:
    """REPLACE or delete: write made-up data and a checkpoint trained on it."""
    folder = Path(__file__).parent
    (folder / "data").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 8))
    for name, count in (("train-0", 1000), ("train-1", 1000), ("test", 20)):
        label = generator.integers(0, 3, count)
        x = (centres[label] + generator.normal(size=(count, 8))).astype(np.float32)
        np.savez(folder / "data" / f"{name}.npz", x=x, label=label)
    torch.save(train(np.arange(2000), seed=0), folder / "model.pt")


if __name__ == "__main__":
    make_placeholder()
