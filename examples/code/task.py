"""What the model is and how to run it: a small causal transformer over bytes of Python code.

Everything that decides the weights is in this one file, so its hash, which the run
records, stands for all of it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parent / "data"
SEQUENCE = 128  # inputs of one example; a row of data holds the byte after them too
PADDING = -100  # what fills a query that is shorter than a row
WIDTH, LAYERS, HEADS = 128, 2, 4
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 1200, 32, 3e-3, 0.1

likelihood = "categorical"
reduction = "mean"  # the loss of a sequence is the mean over its bytes, as in training
ignore_index = PADDING


class Block(nn.Module):
    """Attention and a feed-forward net, each after a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attended = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_norm = nn.LayerNorm(WIDTH)
        self.feed_in = nn.Linear(WIDTH, 4 * WIDTH)
        self.feed_out = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(example, position, WIDTH)`` from the same shape."""
        joined = self.query_key_value(self.attention_norm(x))
        split = joined.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_out(F.gelu(self.feed_in(self.feed_norm(x))))


class Net(nn.Module):
    """A decoder of LAYERS blocks; no dropout, and the output layer has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.position = nn.Embedding(SEQUENCE, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits ``(example, position, 256)`` of the next byte."""
        # One row of positions an example: every layer's input has an example axis.
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def model(checkpoint):
    """Return the net with the weights of ``checkpoint``."""
    net = Net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu"))
    return net.eval()


def forward(net, batch):
    """Return (outputs, targets): every byte is predicted from those before it.

    Padded targets carry `ignore_index`. As inputs they become byte 0, which no position
    that counts can see: attention looks back only.
    """
    tokens = batch["tokens"].to(torch.int64)
    return net(tokens[:, :-1].clamp_min(0)), tokens[:, 1:]


def train(indices, seed):
    """Return the weights trained on the sequences ``indices`` of the training set.

    `streamfluence evaluate` calls it with many subsets to measure whether scores predict
    what retraining does. The same indices and seed give the same weights.
    """
    torch.manual_seed(seed)
    sequences, chosen = training_sequences(), torch.as_tensor(np.asarray(indices))
    net = Net().train()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    for rows in _batches(chosen):
        optimizer.zero_grad()
        outputs, targets = forward(net, {"tokens": sequences[rows]})
        F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.state_dict()


def training_sequences() -> torch.Tensor:
    """Return what the reader of job.toml gives: ``(example, SEQUENCE + 1)`` uint8."""
    shards = [np.load(path) for path in sorted(DATA.glob("train-*.npy"))]
    cut = [np.lib.stride_tricks.sliding_window_view(s, SEQUENCE + 1)[::SEQUENCE] for s in shards]
    return torch.from_numpy(np.concatenate(cut))


def _batches(chosen: torch.Tensor):
    """Yield STEPS batches of rows, going through all of ``chosen`` in a new order each time."""
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(STEPS):
        while len(waiting) < BATCH_SIZE:
            waiting = torch.cat([waiting, chosen[torch.randperm(len(chosen))]])
        yield waiting[:BATCH_SIZE]
        waiting = waiting[BATCH_SIZE:]
