"""Scores of the small net by the real pipeline: job file, run directory, public API.

Nothing is shared with the references; a variant is a few lines of a job.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity_truth import N_CLASSES, N_HIDDEN, N_INPUTS, Digits, split_weights
from torch import Tensor

import streamfluence
from streamfluence.stages.run import run as run_job
from streamfluence.stages.sketch import describe

TASK = f"""
import torch
from torch import nn

likelihood = "categorical"


def model(checkpoint):
    net = nn.Sequential(
        nn.Linear({N_INPUTS}, {N_HIDDEN}), nn.ReLU(), nn.Linear({N_HIDDEN}, {N_CLASSES})
    )
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(model, batch):
    return model(batch["x"]), batch["y"]
"""

JOB = """
task = "task.py"
checkpoints = [{checkpoints}]

[train]
reader = "arrays"
path = "train.npz"

[queries.test]
reader = "arrays"
path = "queries.npz"

[curvature]
weight_decay = {weight_decay}

[compute]
executor = "serial"
device = "cpu"
"""


class Workspace:
    """A folder with the task, the data and one checkpoint a net, in which variants are run.

    Args:
        folder: Empty, or made before by the same call.
        weights: Of the judged nets, ``(model, weight)``.
        weight_decay: Of their training; the default damping follows from it.
    """

    def __init__(self, folder: Path, data: Digits, weights: Tensor, weight_decay: float) -> None:
        self.folder, self.n_models = folder, len(weights)
        self._weight_decay = weight_decay
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.py").write_text(TASK)
        np.savez(folder / "train.npz", x=data.train_x.numpy(), y=data.train_y.numpy())
        np.savez(folder / "queries.npz", x=data.query_x.numpy(), y=data.query_y.numpy())
        for number, flat in enumerate(weights):
            names = ("0.weight", "0.bias", "2.weight", "2.bias")
            parts = (part[0].clone() for part in split_weights(flat.unsqueeze(0)))
            torch.save(dict(zip(names, parts, strict=True)), folder / f"net{number}.pt")

    def scores(self, model: int, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return scores ``(example, query)`` of one net and the facts of its sketch.

        Args:
            options: Laid over the job, dotted keys to values (``{"rows.bytes": 128}``); the key
                ``score.damping`` is the damping at scoring time.
        """
        options = dict(options)
        damping = options.pop("score.damping", None)
        run_path = self.folder / "run"
        shutil.rmtree(run_path, ignore_errors=True)
        run_job(self._job(f'"net{model}.pt"'), str(run_path), options)
        scores = streamfluence.open(str(run_path)).scores("test", damping).compute()
        facts = describe(str(run_path))["checkpoints"][0]
        assert np.isfinite(scores).all(), f"scores of {options} are not finite"
        return scores, facts

    def _job(self, checkpoints: str) -> Path:
        path = self.folder / "job.toml"
        text = JOB.format(checkpoints=checkpoints, weight_decay=json.dumps(self._weight_decay))
        path.write_text(text)
        return path
