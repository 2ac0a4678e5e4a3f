"""A net of more than ten layers, whose blocks a store lists in another order than they have."""

import numpy as np
import pytest
import torch
from small_job import TASK, _gauss_newton, loss_gradients, write_job
from torch import nn

import streamfluence
from streamfluence.stages.run import run

BIASES = (True, False) * 5
HIDDEN = f"[m for b in {BIASES} for m in (nn.Tanh(), nn.Linear(5, 5, bias=b))]"
NET = f"nn.Sequential(nn.Linear(6, 5), *{HIDDEN}, nn.Tanh(), nn.Linear(5, 3))"
SMALL = "nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))"


def deep_job(folder):
    """Write the small job with a net of twelve layers of unequal sizes; return net and data in float64."""
    job = write_job(folder, n=96)
    (folder / "task.py").write_text(TASK.replace(SMALL, NET))
    torch.manual_seed(0)
    module = eval(NET, {"nn": nn})
    torch.save(module.state_dict(), folder / "model.pt")
    parts = [np.load(path) for path in sorted(folder.glob("train-*.npz"))]
    parts.append(np.load(folder / "test.npz"))
    x, y = (torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in "xy")
    return job, module.double(), x.double(), y


@pytest.mark.parametrize("projection", ["identity", "spectral"])
def test_every_layer_is_whitened_with_its_own_curvature(tmp_path, projection):
    job, module, x, y = deep_job(tmp_path)
    changes = {"rows.codec": "float32", "rows.bytes": 0, "projection.name": projection}
    run(job, str(tmp_path / "run"), changes)
    gradients = loss_gradients(module, x, y)
    train, queries = gradients[:96], gradients[96:]
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    hessian = _gauss_newton(module, x[:96]) * torch.block_diag(
        *[torch.ones(size, size, dtype=torch.float64) for size in sizes]
    )
    damped = hessian + 0.01 * torch.eye(len(hessian), dtype=torch.float64)
    expected = (train @ torch.linalg.solve(damped, queries.T) / 96).numpy()
    measured = streamfluence.open(str(tmp_path / "run")).scores().compute()
    assert np.abs(measured - expected).max() < 2e-4 * np.abs(expected).max()
