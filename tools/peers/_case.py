"""What every peer needs of a case: a network of one input, a data set of pairs, losses, a place to write.

Runs in a peer's own environment: imports torch, numpy and the standard library, nothing of this
library, so that no score here shares code with the scores it is compared with.

A case is a folder with ``task.py`` (``model(checkpoint)``, ``forward(net, batch)`` that returns
outputs and targets, ``likelihood``), ``train.npz`` and ``queries.npz`` (a batch's fields, the
input first) and ``net0.pt``, ``net1.pt``, ...
"""

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Outputs(nn.Module):
    """The network as the peers want it: one input tensor, one output tensor, batch first."""

    def __init__(self, task: ModuleType, net: nn.Module, fields: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self._forward = task.forward
        self._input, *others = fields
        self._others = {name: fields[name][:1] for name in others}

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return outputs; ``y`` is ignored, and fields that only make targets are zeros here."""
        others = {
            name: one.new_zeros((len(x), *one.shape[1:])) for name, one in self._others.items()
        }
        return self._forward(self.net, {self._input: x, **others})[0]


class Case:
    """One case and one of its nets.

    Attributes:
        network: Outputs of the net, in evaluation mode.
        checkpoint: Number of the net.
        train, queries: Pairs of inputs and targets, one row an example.
    """

    def __init__(self, folder: Path, checkpoint: int) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        self.task = _load(folder / "task.py")
        net = self.task.model(str(folder / f"net{checkpoint}.pt")).eval()
        train, queries = (_fields(folder / f"{name}.npz") for name in ("train", "queries"))
        self.network = Outputs(self.task, net, train)
        self.train, self.queries = (self._pairs(net, fields) for fields in (train, queries))

    def _pairs(self, net: nn.Module, fields: Mapping[str, Tensor]) -> TensorDataset:
        x = next(iter(fields.values()))
        with torch.no_grad():
            outputs, targets = self.task.forward(net, fields)
            assert torch.equal(outputs, self.network(x)), "the outputs depend on a second field"
        return TensorDataset(x, targets)

    def batches(self, pairs: TensorDataset, size: int | None = None) -> DataLoader:
        """Return a loader in stored order; one batch of everything without ``size``."""
        return DataLoader(pairs, batch_size=size or len(pairs), shuffle=False)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, ``(example,)``, by the task's likelihood."""
        return _rows(self._each(outputs, targets) * self._weights(targets)).sum(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.losses(outputs, targets).mean()

    def margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return TRAK's model output, ``(example,)``: log-odds of the target, or the prediction."""
        if self.task.likelihood == "gaussian":
            return _rows(outputs * self._weights(targets)).sum(1)
        return _rows(self._log_odds(outputs, targets) * self._weights(targets)).sum(1)

    def pulls(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return minus the derivative of the loss in TRAK's model output, ``(example,)``."""
        if self.task.likelihood == "gaussian":
            pulls = (targets - outputs) / getattr(self.task, "variance", 1.0)
        else:
            pulls = torch.sigmoid(-self._log_odds(outputs, targets))
        return _rows(pulls * self._weights(targets)).sum(1)

    def sampled(self, outputs: Tensor) -> Tensor:
        """Return targets drawn from the model itself, as the true Fisher asks."""
        if self.task.likelihood == "gaussian":
            return outputs + torch.randn_like(outputs) * getattr(self.task, "variance", 1.0) ** 0.5
        flat = outputs.flatten(0, -2).softmax(-1)
        return torch.multinomial(flat, 1).view(outputs.shape[:-1])

    def _each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the unweighted loss of every position, shape of ``targets``."""
        if self.task.likelihood == "gaussian":
            return (outputs - targets) ** 2 / (2 * getattr(self.task, "variance", 1.0))
        assert self.task.likelihood == "categorical", (
            f"no peer is set up for {self.task.likelihood}"
        )
        safe = targets.masked_fill(self._weights(targets) == 0, 0)
        flat = F.cross_entropy(outputs.flatten(0, -2), safe.flatten(), reduction="none")
        return flat.view(targets.shape)

    def _log_odds(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return log p / (1 - p) of every target, exact where p is near 1."""
        safe = targets.masked_fill(self._weights(targets) == 0, 0).unsqueeze(-1)
        own = torch.arange(outputs.shape[-1]) == safe
        return outputs.gather(-1, safe).squeeze(-1) - outputs.masked_fill(
            own, float("-inf")
        ).logsumexp(-1)

    def _weights(self, targets: Tensor) -> Tensor:
        counted = torch.ones_like(targets, dtype=torch.float32)
        if self.task.likelihood == "categorical":
            counted = (targets != getattr(self.task, "ignore_index", -100)).float()
        if getattr(self.task, "reduction", "sum") == "mean":
            total = _rows(counted).sum(1).clamp_min(1.0)
            counted = counted / total.view(-1, *[1] * (targets.dim() - 1))
        return counted


@dataclass(frozen=True)
class Method:
    """One family of a peer's settings that share what is fitted.

    Attributes:
        name: On the command line.
        settings: Name of each setting, and what ``score`` gets for it.
        prepare: Fits what all settings share.
        score: Returns scores ``(example, query)``, positive where removing the example raises the
            query's loss, and the bytes that the peer keeps of a training example for scoring it;
            0 where it keeps none and computes the example's gradient again.
    """

    name: str
    settings: Mapping[str, Any]
    prepare: Callable[[Case], Any]
    score: Callable[[Case, Any, Any], tuple[Tensor | np.ndarray, int]]


def main(peer: str, methods: Iterable[Method]) -> None:
    """Run methods of a peer as the command line asks; a failure becomes a line of the results."""
    known = {method.name: method for method in methods}
    options = _arguments(peer, known)
    if options.list:
        print("\n".join(known))
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.methods or known:
        for line in _results(peer, known[name], options):
            with (options.out / "results.jsonl").open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def _results(peer: str, method: Method, options: argparse.Namespace) -> Iterable[dict[str, Any]]:
    facts = {"peer": peer, "version": importlib.metadata.version(peer), "torch": torch.__version__}
    facts |= {"method": method.name, "model": options.model}
    started = time.perf_counter()
    try:
        torch.manual_seed(0)
        case = Case(options.case, options.model)
        prepared = method.prepare(case)
        fitted = time.perf_counter() - started
        for setting, value in method.settings.items():
            started = time.perf_counter()
            scores, row_bytes = method.score(case, prepared, value)
            array = np.asarray(torch.as_tensor(scores).detach(), dtype=np.float32)
            assert array.shape == (len(case.train), len(case.queries)), array.shape
            np.save(options.out / f"{peer}-{setting}-net{options.model}.npy", array)
            yield facts | {
                "setting": setting,
                "row_bytes": row_bytes,
                "seconds": fitted + time.perf_counter() - started,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "finite": bool(np.isfinite(array).all()),
            }
    except Exception as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        yield facts | {
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "raised_in": f"{Path(place.filename).name}:{place.name}",
        }


def _load(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("case_task", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _fields(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _arguments(peer: str, known: Mapping[str, Method]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Scores of {peer}, in {peer}'s own environment.")
    parser.add_argument("case", type=Path, nargs="?", help="folder of the case")
    parser.add_argument("out", type=Path, nargs="?", help="folder for scores and results.jsonl")
    parser.add_argument("--model", type=int, default=0, help="number of the net")
    parser.add_argument("--methods", nargs="*", choices=list(known), help="instead of all")
    parser.add_argument("--list", action="store_true", help="print the methods and stop")
    options = parser.parse_args()
    if not options.list and options.out is None:
        parser.error("give the folder of the case and the folder for the scores")
    for name in ("task.py", "train.npz", "queries.npz", f"net{options.model}.pt"):
        if not options.list and not (options.case / name).is_file():
            sys.exit(f"{options.case} has no {name}; write it with tools/bench/fidelity.py")
    return options
