"""The slow, obvious reference of capture tests: one backward an example, in float64."""

import torch
from torch import nn

from streamfluence.capture import Capture, dense_gradient


def forward(model, batch):
    return model(batch)


def weighted(returned):
    """A smooth loss of any output: fixed weights times a tanh, summed over all but the examples."""
    outputs = returned[0] if isinstance(returned, (tuple, list)) else returned
    flat = outputs.flatten(1)
    weights = torch.linspace(0.3, 1.7, flat.shape[1], dtype=flat.dtype)
    return (torch.tanh(flat) * weights + 0.1 * flat.square()).sum(1)


def one(batch, example):
    if isinstance(batch, torch.Tensor):
        return batch[example : example + 1]
    if isinstance(batch, dict):
        return {key: one(value, example) for key, value in batch.items()}
    return type(batch)(one(value, example) for value in batch)


def count(batch):
    while not isinstance(batch, torch.Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def one_backward_an_example(model, batch, run=forward, loss=weighted):
    """Return parameter name -> gradients, shape ``(example, *parameter)``."""
    named = dict(model.named_parameters())
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    rows = {name: [] for name in trainable}
    for example in range(count(batch)):
        total = loss(run(model, one(batch, example))).sum()
        found = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
        for (name, p), gradient in zip(trainable.items(), found, strict=True):
            rows[name].append(torch.zeros_like(p) if gradient is None else gradient.to_dense())
    return {name: torch.stack(row) for name, row in rows.items()}


def uses_of(capture, batch, loss=weighted):
    with capture.record(batch) as tape:
        losses = loss(tape.returned)
        return tape.gradients(losses, torch.ones_like(losses), last=True)


def by_parameter(model, capture, uses):
    """Return what a capture gives, cut back into parameters, by the layout that `Block` promises."""
    named, rows = dict(model.named_parameters(remove_duplicate=False)), {}
    for block in capture.blocks:
        gradient = dense_gradient(block, uses[block.name])
        assert gradient.shape[1:] == (block.groups, block.left, block.right)
        # Names that share one memory come before those of the bias, which fills the last column.
        first = named[block.parameters[0]]
        tied = [n for n in block.parameters if named[n].data_ptr() == first.data_ptr()]
        others = [n for n in block.parameters if n not in tied]
        matrix = gradient[..., :-1] if others else gradient
        owner = model.get_submodule(tied[0].rpartition(".")[0])
        if type(owner).__name__ == "Conv1D" and len(tied) == 1:
            matrix = matrix.transpose(-1, -2)
        rows[tied[0]] = matrix.reshape(len(gradient), *first.shape)
        for name in others:
            rows[name] = gradient[..., -1].reshape(len(gradient), *named[name].shape)
    return rows


def assert_exact(model, batch, run=forward, loss=weighted, exclude=(), tolerance=1e-10, plan=None):
    """Check a captured batch against one backward an example, and the capture's own check."""
    for p in model.parameters():
        if p.is_floating_point() and p.numel() and not bool(p.detach().ne(0).any()):
            nn.init.normal_(p)
    model.eval()
    capture = Capture(model, run, batch if plan is None else plan, exclude)
    found = by_parameter(model, capture, uses_of(capture, batch, loss))
    expected = one_backward_an_example(model, batch, run, loss)
    capture.check(batch, loss)
    left_out = {name for name in expected if name not in found}
    for name in found:
        scale = expected[name].abs().max()
        error = (found[name] - expected[name]).abs().max()
        assert error <= tolerance * scale + 1e-13, f"{name}: {error} of {scale}"
    return capture, found, left_out
