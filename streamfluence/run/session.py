"""What one worker process holds of a run: opened once, used by every task it gets.

A task carries no objects, only the run's path, a device and a few integers;
everything else is looked up here and kept for the next task.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from streamfluence.batches import in_company
from streamfluence.capture import eager
from streamfluence.curvature.base import Curvature
from streamfluence.data._batches import batch_length, map_batch, to_tensors
from streamfluence.data.base import Reader
from streamfluence.errors import InputError
from streamfluence.run.curvatures import UsedCurvature, used_curvature
from streamfluence.run.identity import pinned_reader, plain
from streamfluence.run.opened import OpenRun
from streamfluence.store.digests import document_digest
from streamfluence.task import Task
from streamfluence.task_file import load_task

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Kept = TypeVar("Kept")


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
        self._kept: dict[str, tuple[int, Any]] = {}

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

    def kept(self, what: str, checkpoint: int, make: Callable[[], Kept]) -> Kept:
        """Return what was made at a checkpoint, made on first use; of each kind that of one checkpoint.

        Args:
            what: Its kind; what is there of another checkpoint is dropped before this is made.
        """
        if self._kept.get(what, (None, None))[0] != checkpoint:
            self._kept.pop(what, None)
            self._kept[what] = checkpoint, make()
        kept: Kept = self._kept[what][1]
        return kept

    def curvature(self) -> Curvature:
        """Return the run's curvature; of a task that gives a bare loss it may be another than asked."""
        return self.used_curvature.member

    @cached_property
    def used_curvature(self) -> UsedCurvature:
        """The curvature in use, by name, and whether it takes the place of the asked one."""
        asked = self.run.method.curvature
        return used_curvature(asked.name, asked.options, self.task.likelihood is not None)

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
