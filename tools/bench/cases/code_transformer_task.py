"""A causal transformer of two blocks over Python source text; 103,104 weights, sequences of 64.

Attention is written out, so that stacked nets can be trained as one.
"""

import torch
from torch import nn

likelihood = "categorical"
reduction = "mean"  # the loss of a sequence is the mean over its characters, as in training

N_CHARACTERS, SEQUENCE, WIDTH, BLOCKS, HEADS = 97, 64, 72, 2, 4


class Block(nn.Module):
    """Attention and a feed-forward net, each after a LayerNorm and added to its input."""

    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attended = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_norm = nn.LayerNorm(WIDTH)
        self.feed_in = nn.Linear(WIDTH, 2 * WIDTH)
        self.feed_out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        """Return ``(example, position, WIDTH)`` from the same shape."""
        joined = self.query_key_value(self.attention_norm(x))
        split = joined.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        match = query @ key.mT * (WIDTH // HEADS) ** -0.5
        ahead = torch.ones(match.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = match.masked_fill(ahead, float("-inf")).softmax(-1) @ value
        x = x + self.attended(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_out(nn.functional.gelu(self.feed_in(self.feed_norm(x))))


class Transformer(nn.Module):
    """A decoder without dropout; the output layer has weights of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(N_CHARACTERS, WIDTH)
        self.position = nn.Embedding(SEQUENCE, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, N_CHARACTERS, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens):
        """Return logits ``(example, position, N_CHARACTERS)`` of the next character."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def network():
    """Return the untrained net."""
    return Transformer()


def model(checkpoint):
    """Return the net with the weights of ``checkpoint``."""
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    """Return logits and targets: every character is predicted from those before it."""
    tokens = batch["tokens"].to(torch.int64)
    return net(tokens[:, :-1]), tokens[:, 1:]
