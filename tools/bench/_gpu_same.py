"""How far rows and lists that are made on a device are from those made on the CPU."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from _gpu_runs import prepare, sketch_all, stored_rows
from score import score as score_run
from torch import Tensor

from streamfluence.capture import Outer
from streamfluence.collecting.decision import decision_of
from streamfluence.collecting.units import measured_rows
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.session import open_session


def same(options: argparse.Namespace) -> dict[str, Any]:
    """Return how far rows and lists made on the device are from those made on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, job, _, batch = prepare(folder / "a", options, "cpu", "float32")
        sketch_all(path, job)
        here, there = (rows_of(path, device, batch) for device in ("cpu", options.device))
        errors = {
            "row_error": float(relative(there.pop("rows"), expected := here.pop("rows")).max())
        }
        errors |= {f"{key}_error": float(relative(there[key], here[key]).max()) for key in here}
        path, job, _, batch = prepare(folder / "b", options, options.device, "float32")
        sketch_all(path, job)
        other, gram = rows_of(path, options.device, batch)["rows"], expected @ expected.T
        errors["score_error_of_a_sketch_made_on_the_device"] = float(
            (other @ other.T - gram).norm() / gram.norm()
        )
        path, job, _, batch = prepare(folder / "c", options, options.device, "bf16")
        sketch_all(path, job)
        errors["row_error_of_products_with_bf16_sides"] = half_error(path, options.device, batch)
    return {**errors, **same_lists(options)}


def rows_of(path: str, device: str, examples: int) -> dict[str, Tensor]:
    """Return the rows of the first batch before they are coded, and what is stored beside them."""
    session = open_session(path, device)
    decision = decision_of(AtCheckpoint(session, 0))
    batch = session.batch(session.reader("train").read(0, examples))
    whitened, facts = measured_rows(decision, decision.at.feature, batch, "loss")
    found = {"rows": decision.preconditioner.for_rows(whitened), **facts}
    return {
        key: found[key].double().cpu() for key in ("rows", "loss", "grad_norm", "self_influence")
    }


def half_error(path: str, device: str, examples: int) -> float:
    """Return how far features of bfloat16 sides are from products of the same sides in float32."""
    session = open_session(path, device)
    decision = decision_of(AtCheckpoint(session, 0))
    batch = session.batch(session.reader("train").read(0, examples))
    uses = decision.scales.apply(decision.at.feature.measure(batch).uses)
    floats = {
        name: [Outer(use.left, use.right) if isinstance(use, Outer) else use for use in some]
        for name, some in uses.items()
    }
    found, expected = (decision.projection.apply(each).double().cpu() for each in (uses, floats))
    return float(relative(found, expected).max())


def same_lists(options: argparse.Namespace) -> dict[str, Any]:
    """Return whether top-k of the same stored rows lists the same examples, and how scores differ."""
    with tempfile.TemporaryDirectory() as folder:
        codec, queries = stored_rows(folder, options)
        states = [
            score_run(folder, codec.to(device), queries.to(device), options.top).states["top_k"]
            for device in ("cpu", options.device)
        ]
    here, there = ({key: torch.from_numpy(value) for key, value in s.items()} for s in states)
    equal = [(here[key] == there[key]).float().mean() for key in ("positive_rows", "negative_rows")]
    error = (here["positive_scores"] - there["positive_scores"]).abs().max()
    return {
        "equal_places_of_lists": float(min(equal)),
        "score_error_of_lists": float(error / here["positive_scores"].abs().max()),
    }


def relative(found: Tensor, expected: Tensor) -> Tensor:
    """Return the relative error of every row."""
    rows, wanted = (each.reshape(len(each), -1) for each in (found, expected))
    error: Tensor = (rows - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-30)
    return error
