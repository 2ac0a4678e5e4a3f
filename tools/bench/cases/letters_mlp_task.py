"""An MLP 16-256-128-26 on letters; 40,602 weights."""

import torch
from torch import nn

likelihood = "categorical"


def network():
    """Return the untrained net."""
    return nn.Sequential(
        nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 26)
    )


def model(checkpoint):
    """Return the net with the weights of ``checkpoint``."""
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    """Return logits ``(example, 26)`` and labels."""
    return net(batch["x"]), batch["y"]
