"""What one worker process holds of a run: opened once, used by every task it gets.

A task carries no objects, only the run's path, a device and a few integers;
everything else is looked up here and kept for the next task.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from streamfluence.batches import in_company
from streamfluence.capture import Capture, Scales, by_block, eager
from streamfluence.curvature.base import Curvature
from streamfluence.data._batches import batch_length, map_batch, to_tensors
from streamfluence.data.base import Reader
from streamfluence.errors import InputError
from streamfluence.features.base import Feature, Ground
from streamfluence.features.gradient import Gradient
from streamfluence.layout import scales_stage
from streamfluence.options import make
from streamfluence.projections.base import Projection
from streamfluence.run.checkpoints import checkpoint_signature, refuse_other_checkpoint
from streamfluence.run.curvatures import UsedCurvature, used_curvature
from streamfluence.run.feature import feature_of
from streamfluence.run.identity import pinned_reader, plain
from streamfluence.run.opened import OpenRun
from streamfluence.run.states import load_state
from streamfluence.store.digests import document_digest
from streamfluence.task import Task
from streamfluence.task_file import load_task

PLANNING = 16  # examples a feature learns shapes from: enough for routed experts to show

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Session:
    """An opened run on one device.

    Raises:
        InputError: If the task, the data or a checkpoint changed since the run was made.
    """

    def __init__(self, run_path: str, device: str) -> None:
        self.run = OpenRun.open(run_path)
        self.device = torch.device(device)
        self.task = self._task()
        self._readers: dict[str, tuple[Reader, Any]] = {}
        self._models: dict[int, nn.Module] = {}
        self._features: dict[int, Feature] = {}

    def reader(self, example_set: str) -> Reader:
        """Return the reader of an example set, after checking that its data is what the run pinned."""
        if example_set not in self._readers:
            self._readers[example_set] = pinned_reader(self.run, example_set)
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
        return bool(plain(reader.stat_signature()) != signature)

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
        return self.run.method.batches.precision == "bf16"

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

    def measured(
        self, of: Callable[[Any], Tensor], model: nn.Module, batch: Any, half: bool | None = None
    ) -> Tensor:
        """Return ``of`` what forward returns, a number for each example, shape ``(example,)``.

        Args:
            of: ``task.loss``, ``task.training_loss`` or a measurement.
            half: Whether in bfloat16; as the run by default.
        """
        half, count = self.half if half is None else half, batch_length(batch)
        return in_company(lambda b: of(self.forward_at(half, model, b)), batch, count)[:count]

    def feature(self, checkpoint: int) -> Feature:
        """Return what is measured, ready to measure at one checkpoint."""
        if checkpoint not in self._features:
            self._features.clear()
            feature = feature_of(self.run.method)
            feature.at(self._ground(checkpoint))
            self._features[checkpoint] = feature
        return self._features[checkpoint]

    def capture(self, checkpoint: int) -> Capture:
        """Return what captures the gradients of one checkpoint's model.

        Raises:
            InputError: If what is measured is no gradient.
        """
        feature = self.feature(checkpoint)
        if not isinstance(feature, Gradient):
            raise InputError(
                f"{self.run.url} measures the feature {self.run.method.feature.name!r}, which is no "
                "gradient of weights; this looks at gradients, so ask it of a run whose feature is 'gradient'"
            )
        return feature.capture

    def _ground(self, checkpoint: int) -> Ground:
        rows = self.reader("train").read(0, min(PLANNING, self.run.train.count))
        chosen = self.run.method.model
        return Ground(
            task=self.task,
            model=self.model(checkpoint),
            forward=self.forward,
            forward_exactly=partial(self.forward_at, False),
            examples=self.batch(rows),
            exclude=chosen.exclude,
            one_by_one=chosen.one_by_one,
            half=self.half,
        )

    def projection(self, checkpoint: int) -> Projection:
        """Return the run's projection, not fitted yet."""
        wanted, blocks = self.run.method.projection, self.feature(checkpoint).blocks
        seed = self.run.method.sketch.seed
        made: Projection = make(
            "projections", wanted.name, wanted.options, blocks, wanted.width, seed
        )
        return made

    def curvature(self) -> Curvature:
        """Return the run's curvature; of a task that gives a bare loss it may be another than asked."""
        return self.used_curvature.member

    @cached_property
    def used_curvature(self) -> UsedCurvature:
        """The curvature in use, by name, and whether it takes the place of the asked one."""
        asked = self.run.method.curvature
        return used_curvature(asked.name, asked.options, self.task.likelihood is not None)

    def scales(self, checkpoint: int) -> Scales:
        """Return the coordinates in which the damping is the same for every weight, on the device."""
        if not self.run.method.curvature.by_weight:
            return Scales()
        arrays, _ = load_state(self.run, scales_stage(checkpoint), 0)
        blocks = self.feature(checkpoint).blocks
        return Scales(by_block(blocks, arrays["left"], arrays["right"])).to(self.device)

    def model(self, checkpoint: int) -> nn.Module:
        """Return the model of one checkpoint on the device; only one is kept at a time."""
        if checkpoint not in self._models:
            self._models.clear()
            self._models[checkpoint] = self._load_model(checkpoint)
        return self._models[checkpoint]

    def _load_model(self, checkpoint: int) -> nn.Module:
        path = self.run.checkpoint_path(checkpoint)
        before = checkpoint_signature(path)
        refuse_other_checkpoint(self.run, checkpoint, path)
        trainable = feature_of(self.run.method).gradients
        model = self.task.model(path, trainable).to(self.device)
        if checkpoint_signature(path) != before:
            raise InputError(
                f"checkpoint {path} was written to while it was loaded; wait until nothing writes to it, "
                f"then run the same command again"
            )
        seed = self.run.method.model.shuffle
        return model if seed is None else shuffled(model, seed)

    def _task(self) -> Task:
        place, method = self.run.place, self.run.method
        if not place.root.is_dir():
            raise InputError(
                f"what {self.run.url} was made of lay in {place.root}, which is not there; if it was moved, "
                f"say where to by `streamfluence relocate`, or by --root for one command"
            )
        task = load_task(place.task, place.root, method.task_files)
        if task.digest != method.task_digest:
            raise InputError(
                f"the manifest of {self.run.url} names files of task {place.task} that its own "
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


def open_session(run_path: str, device: str) -> Session:
    """Return this process's session of a run, opened on first use.

    The training set's seal is part of the key: a run made anew in the same place is another run.
    """
    run = OpenRun.open(run_path)
    return _session(run_path, device, run.train.seal, document_digest(run.place.content()))


def worker_unit(
    unit: Callable[Concatenate[Session, Arguments], Result],
) -> Callable[Concatenate[str, str, Arguments], Result]:
    """Make of a unit of work on a session the function that a worker calls: a task carries no objects.

    What is made takes the run's path and the device where the unit takes the session.
    """

    @wraps(unit)
    def at_the_door(
        run_path: str, device: str, /, *given: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        return unit(open_session(run_path, device), *given, **named)

    return at_the_door


@lru_cache(maxsize=2)
def _session(run_path: str, device: str, seal: str, place: str) -> Session:
    return Session(run_path, device)
