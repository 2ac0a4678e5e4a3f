"""What the model is and how to run it: a small convolutional net on 8x8 handwritten digits.

Everything that decides the weights is in this one file, so its hash, which the run
records, stands for all of it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parent / "data"
WEIGHT_DECAY = 1e-3  # also in job.toml: it is the exact damping of the curvature
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 64, 3e-3

likelihood = "categorical"


class Net(nn.Module):
    """Two convolutions and a linear layer, 9,930 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(1, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits ``(example, 10)`` of images ``(example, 1, 8, 8)`` in [0, 1]."""
        hidden = F.max_pool2d(F.relu(self.narrow(image)), 2)
        return self.head(F.relu(self.wide(hidden)).flatten(1))


def model(checkpoint):
    """Return the net with the weights of ``checkpoint``."""
    net = Net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
    return net.eval()


def forward(net, batch):
    """Return (outputs, targets); ``batch`` holds the fields of data/*.npz as tensors."""
    return net(batch["image"]), batch["label"]


# What a query may ask about instead of the loss, by the name a job gives as `measurement`.
# One number an example, and lower is better for the model.
measurements = {
    "error_probability": lambda outputs, targets: (
        1 - outputs.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    ),
}


def train(indices, seed):
    """Return the weights trained on the rows ``indices`` of the training set.

    `streamfluence evaluate` calls it with many subsets to measure whether scores predict
    what retraining does. The same indices and seed give the same weights.
    """
    torch.manual_seed(seed)
    images, labels = _training_set()
    chosen = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
    images, labels = images[chosen], labels[chosen]
    net = Net().train()
    # Adam's weight_decay adds wd * weight to the gradient: the objective is
    # mean loss + wd / 2 * |weights|^2, the one the damping rule assumes.
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(chosen) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(chosen)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.state_dict()


def _training_set():
    shards = [np.load(path) for path in sorted(DATA.glob("train-*.npz"))]
    images, labels = (
        np.concatenate([shard[key] for shard in shards]) for key in ("image", "label")
    )
    return torch.from_numpy(images), torch.from_numpy(labels)
