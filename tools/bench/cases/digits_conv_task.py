"""Two convolutions, a pool and a linear layer on 8 x 8 digits; 3,818 weights."""

import torch
from torch import nn

likelihood = "categorical"


def network():
    """Return the untrained net."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def model(checkpoint):
    """Return the net with the weights of ``checkpoint``."""
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    """Return logits ``(example, 10)`` and labels."""
    return net(batch["x"].view(-1, 8, 8)), batch["y"]
