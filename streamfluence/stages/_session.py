"""What one worker process holds of a run: opened once, used by every task it gets.

A task carries no objects, only the run's path, a device and a few integers;
everything else is looked up here and kept for the next task.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamfluence.capture import Capture, Scales, Uses, by_block, eager
from streamfluence.codecs.base import Codec
from streamfluence.curvature.base import Curvature, Factor
from streamfluence.data import batch_length, map_batch, to_tensors
from streamfluence.data.base import Reader
from streamfluence.errors import InputError
from streamfluence.features.gradient import Gradient
from streamfluence.linalg import State
from streamfluence.projections.base import Projection
from streamfluence.registry import member
from streamfluence.stages import _damping, _resolve
from streamfluence.stages._identity import pinned_reader, plain
from streamfluence.stages._sets import plan_stage, scales_stage, set_facts
from streamfluence.store import RunStore
from streamfluence.task import Task, load_task

PLANNING = 16  # examples a capture is planned on: enough for routed experts to show


class Session:
    """An opened run on one device.

    Raises:
        InputError: If the task, the data or a checkpoint changed since the run was made.
    """

    def __init__(self, run_path: str, device: str) -> None:
        self.store = RunStore.open(run_path)
        self.manifest: dict[str, Any] = self.store.manifest
        self.root = Path(self.manifest["root"])
        self.device = torch.device(device)
        self.task = self._task()
        self._readers: dict[str, tuple[Reader, Any]] = {}
        self._models: dict[int, nn.Module] = {}
        self._captures: dict[int, Capture] = {}

    def table(self, example_set: str) -> dict[str, Any]:
        """Return the pinned facts of an example set: table, count, partition_examples, measurement."""
        return set_facts(self.store, example_set)

    def reader(self, example_set: str) -> Reader:
        """Return the reader of an example set, after checking that its data is what the run pinned."""
        if example_set not in self._readers:
            self._readers[example_set] = pinned_reader(self.store, example_set)
        return self._readers[example_set][0]

    def refresh(self, example_set: str) -> None:
        """Check the data of an example set again if its files were touched since that was done.

        A worker lives long; every work unit that reads begins with this.
        """
        if self._touched(example_set):
            del self._readers[example_set]
            self.reader(example_set)

    def refuse_touched(self, example_set: str) -> None:
        """Raise InputError if the files of an example set were touched since they were checked.

        What was read since may be anything; every work unit that reads ends with this.
        """
        if self._touched(example_set):
            raise InputError(
                f"the data of {example_set!r} was written to while it was read, and what was made of it "
                f"was thrown away; wait until nothing writes to it, then run the same command again"
            )

    def _touched(self, example_set: str) -> bool:
        self.reader(example_set)
        reader, signature = self._readers[example_set]
        return plain(reader.stat_signature()) != signature

    def batch(self, host_batch: Any) -> Any:
        """Return a batch as tensors on the device; pinned and copied without waiting on CUDA."""
        tensors = to_tensors(host_batch)
        if self.device.type == "cpu":
            return tensors
        return map_batch(self._sent, tensors)

    def _sent(self, array: Any) -> Any:
        """Return a tensor on its way to the device; an array that torch cannot hold stays."""
        if not isinstance(array, Tensor):
            return array
        return array.pin_memory().to(self.device, non_blocking=True)

    @property
    def half(self) -> bool:
        """Whether forward and backward run in bfloat16."""
        return self.manifest["compute"]["precision"] == "bf16"

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the task's forward at the run's precision, and check what it returns."""
        return self.forward_at(self.half, model, batch)

    def forward_at(self, half: bool, model: nn.Module, batch: Any) -> Any:
        """Run the task's forward in bfloat16 or float32, and check what it returns."""
        # With gradients also where none is asked for: a model may differentiate itself in forward.
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)
        with eager(), torch.enable_grad(), autocast:
            returned = self.task.forward(model, batch)
        self.task.check(returned, batch_length(batch))
        return returned

    def capture(self, checkpoint: int) -> Capture:
        """Return the capture planned on one checkpoint's model."""
        if checkpoint not in self._captures:
            self._captures.clear()
            model = self.model(checkpoint)
            self._captures[checkpoint] = self.planned(model, self.forward)
        return self._captures[checkpoint]

    def planned(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> Capture:
        """Return a capture of ``model`` under ``forward``, planned on the first examples."""
        rows = self.reader("train").read(0, min(PLANNING, self.table("train")["count"]))
        exclude = tuple(self.manifest["model"]["exclude"])
        return Capture(model, forward, self.batch(rows), exclude)

    def projection(self, checkpoint: int) -> Projection:
        """Return the run's projection, not fitted yet."""
        wanted = self.manifest["projection"]
        kind = member("projections", wanted["name"])
        try:
            return kind(
                self.capture(checkpoint).blocks,
                self.width(),
                self.manifest["sketch"]["seed"],
                **wanted["options"],
            )
        except TypeError as error:
            raise InputError(
                f"projection {wanted['name']}: {error}; check projection.options"
            ) from error

    def width(self) -> int:
        """Return how many features are wanted."""
        return self.manifest["projection"]["width"]

    def curvature(self) -> Curvature:
        """Return the run's curvature; without a likelihood Gauss-Newton falls back to the Fisher."""
        return member("curvature", self.curvature_name())()

    def curvature_name(self) -> str:
        """Return the curvature in use, which differs from the asked one only for a bare loss."""
        asked = self.manifest["curvature"]["name"]
        return "fisher" if asked == "gauss_newton" and self.task.likelihood is None else asked

    def gradient(self, checkpoint: int, projection: Projection | None, scales: Scales) -> Gradient:
        """Return the feature that measures gradients at one checkpoint."""
        return Gradient(self.task, self.capture(checkpoint), projection, scales)

    def scales(self, checkpoint: int) -> Scales:
        """Return the coordinates in which the damping is the same for every weight, on the device."""
        if not _damping.by_weight(self.manifest["curvature"]):
            return Scales()
        arrays, _ = load_state(self.store, scales_stage(checkpoint), 0)
        blocks = self.capture(checkpoint).blocks
        return Scales(by_block(blocks, arrays["left"], arrays["right"])).to(self.device)

    def checkpoint_count(self) -> int:
        return len(self.manifest["checkpoints"])

    def model(self, checkpoint: int) -> nn.Module:
        """Return the model of one checkpoint on the device; only one is kept at a time."""
        if checkpoint not in self._models:
            self._models.clear()
            self._models[checkpoint] = self._load_model(checkpoint)
        return self._models[checkpoint]

    def _load_model(self, checkpoint: int) -> nn.Module:
        pinned = self.manifest["checkpoints"][checkpoint]
        path = self.root / pinned["path"]
        before = _resolve.checkpoint_signature(path)
        if _resolve.checkpoint_facts(self.root, pinned["path"]) != pinned:
            raise InputError(
                f"checkpoint {path} changed since {self.store.url} was made; "
                f"restore it, or use a new run folder"
            )
        model = self.task.model(path).to(self.device)
        if _resolve.checkpoint_signature(path) != before:
            raise InputError(
                f"checkpoint {path} was written to while it was loaded; wait until nothing writes to it, "
                f"then run the same command again"
            )
        # Only pilot runs of `evaluate sanity` name a seed here; a job cannot.
        seed = self.manifest["model"].get("shuffle")
        return model if seed is None else shuffled(model, seed)

    def _task(self) -> Task:
        task = load_task(self.manifest["task"], self.root, self.manifest["task_files"])
        if task.digest != self.manifest["task_digest"]:
            raise InputError(
                f"the manifest of {self.store.url} names files of task {self.manifest['task']} that its own "
                f"task_digest is not of; it was edited, so use a new run folder"
            )
        return task


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with the entries of every parameter in random order: nothing it learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return model


def session(run_path: str, device: str) -> Session:
    """Return this process's session of a run, opened on first use.

    The fingerprint is part of the key: a run made anew in the same place is another run.
    """
    return _session(run_path, device, RunStore.open(run_path).fingerprint)


@lru_cache(maxsize=2)
def _session(run_path: str, device: str, fingerprint: str) -> Session:
    return Session(run_path, device)


class Directions:
    """What the sketch decided for one checkpoint, ready to make rows of gradients on a device.

    Attributes:
        projection: Fitted and loaded.
        scales: Of the coordinates that gradients are projected in.
        factor: Eigenvectors, eigenvalues and damping of the curvature in feature space.
        codec: How a training row is stored.
    """

    def __init__(self, opened: Session, checkpoint: int) -> None:
        arrays, facts = load_state(opened.store, plan_stage(checkpoint), 0)
        self.facts = facts
        self.projection = opened.projection(checkpoint)
        self.projection.load(select(arrays, "projection"))
        self.projection = self.projection.to(opened.device)
        self.scales = opened.scales(checkpoint)
        self.factor = load_factor(arrays).to(opened.device)
        kind = member("codecs", opened.manifest["rows"]["codec"])
        self.codec: Codec = kind(select(arrays, "codec")).to(opened.device)

    def features(self, uses: Uses) -> Tensor:
        """Return the features of gradients over the weights, in the coordinates that rows are in."""
        return self.projection.apply(self.scales.apply(uses))


def directions(run_path: str, device: str, checkpoint: int) -> Directions:
    """Return the directions of one checkpoint, loaded once a process."""
    opened = session(run_path, device)
    receipt = opened.store.receipt(plan_stage(checkpoint), 0)
    assert receipt is not None, "collect checks that the sketch is there"
    return _directions(opened, checkpoint, receipt.attempt)


@lru_cache(maxsize=2)
def _directions(opened: Session, checkpoint: int, attempt: str) -> Directions:
    return Directions(opened, checkpoint)


def load_factor(arrays: State) -> Factor:
    """Return the curvature factor among the arrays of a sketch plan."""
    vectors, turns = (
        tuple(found[key] for key in sorted(found, key=int))
        for found in (select(arrays, "vectors"), select(arrays, "turns"))
    )
    return Factor(vectors, arrays["values"], arrays["damping"], arrays["lean"], turns)


def load_codec(store: RunStore, checkpoint: int) -> tuple[Codec, Factor]:
    """Return codec and factor of one checkpoint without opening the model; scoring needs no more."""
    arrays, _ = load_state(store, plan_stage(checkpoint), 0)
    return member("codecs", store.manifest["rows"]["codec"])(select(arrays, "codec")), load_factor(
        arrays
    )


def save_state(
    store: RunStore,
    stage: str,
    partition: int,
    state: State,
    facts: dict[str, Any],
    rests_on: dict[str, str] | None = None,
) -> None:
    """Commit a state with its facts as attributes.

    Args:
        rests_on: Digests of what it was made from, for its receipt.
    """
    arrays = {key: value.cpu().numpy() for key, value in state.items()}
    store.commit(stage, partition, arrays, {"facts": facts}, rests_on)


def load_state(store: RunStore, stage: str, partition: int) -> tuple[State, dict[str, Any]]:
    """Return a committed state, verified, and its facts."""
    receipt = store.receipt(stage, partition)
    assert receipt is not None, f"{stage} is not there: its step runs before this one"
    state = {name: torch.from_numpy(array) for name, array in store.read_all(receipt).items()}
    return state, store.read_attributes(receipt)["facts"]


def select(state: State, prefix: str) -> State:
    """Return the entries under ``prefix/``, without it."""
    cut = len(prefix) + 1
    return {key[cut:]: value for key, value in state.items() if key.startswith(prefix + "/")}
