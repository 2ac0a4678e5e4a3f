"""Transformers of several sizes for the GPU benchmark: task file, random weights, random tokens, job."""

import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _models import TRANSFORMER
from collect import JOB
from torch import nn


class Net(NamedTuple):
    """Sizes of a transformer, and how many of its sequences are one batch."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    length: int
    batch: int


NETS = {
    "tiny": Net(300, 32, 2, 2, 16, 4),
    "3m": Net(1000, 256, 4, 4, 128, 8),
    "124m": Net(50_257, 768, 12, 12, 512, 32),
    "1b": Net(50_257, 2048, 16, 16, 512, 16),
}
_DEFAULT = "= 256, 384, 6, 6, 128"


def source(net: Net) -> str:
    """Return the task file of the collect benchmark's transformer with other sizes."""
    assert _DEFAULT in TRANSFORMER
    sizes = (net.vocabulary, net.width, net.heads, net.layers, net.length)
    return TRANSFORMER.replace(_DEFAULT, "= " + ", ".join(map(str, sizes)))


def make(folder: Path, net: Net, sequences: int, side_limit: int, **job) -> int:
    """Write task, weights, data and ``job.toml``; return the number of weights.

    Args:
        side_limit: Sides longer than this have their moments sketched.
        job: The fields of ``collect.JOB``.
    """
    folder.mkdir(exist_ok=True)
    tokens = np.random.default_rng(0).integers(0, net.vocabulary, (sequences, net.length + 1))
    np.savez(folder / "train.npz", tokens=tokens)
    (folder / "task.py").write_text(source(net))
    model = transformer(net)
    torch.save(model.state_dict(), folder / "model.pt")
    options = f"\n[projection]\noptions = {{ side_limit = {side_limit} }}\n"
    (folder / "job.toml").write_text(JOB.format(**job) + options)
    return sum(weight.numel() for weight in model.parameters())


def transformer(net: Net) -> nn.Module:
    """Return the net with seeded random weights."""
    module = types.ModuleType("task")
    exec(source(net), module.__dict__)
    torch.manual_seed(0)
    return module.Transformer()
