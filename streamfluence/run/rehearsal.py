"""Try a task on a few examples before its run is made, so that a mistake in it leaves nothing behind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamfluence.batches import in_company
from streamfluence.capture import eager
from streamfluence.data import open_reader
from streamfluence.data._batches import batch_length, to_tensors
from streamfluence.data.base import Reader
from streamfluence.features.base import Ground
from streamfluence.job import Job
from streamfluence.run.feature import checked_feature
from streamfluence.task import Task

_EXAMPLES = 2


def rehearse(job: Job, task: Task, checkpoint: str, reader: Reader, device: str) -> None:
    """Build the model and measure the first examples of every set, and read their labels, as the run will.

    Raises:
        InputError: Whatever the task or the data would be refused for, in the same words.
    """
    feature, trial = checked_feature(job), _Trial(job, task, device)
    model = task.model(job.root / checkpoint, feature.gradients).to(device)
    try:
        _read_labels(reader)
        task.training_loss(trial.returned(model, reader))
        if not feature.gradients:  # to decide how examples are kept apart takes longer
            feature.at(trial.ground(model, reader))
        for table in job.queries.values():
            data = {key: value for key, value in table.items() if key != "measurement"}
            queries = open_reader(dict(data), Path(job.root))
            if queries.count():
                _read_labels(queries)
                measurement = table.get("measurement", "loss")
                task.measure(measurement, trial.returned(model, queries))
                if not feature.gradients:
                    feature.measure(trial.batch(queries), measurement)
    finally:
        del model
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # the workers load their own


def _read_labels(reader: Reader) -> None:
    count = min(_EXAMPLES, reader.count())
    reader.example_ids(0, count)
    reader.groups(0, count)


@dataclass(frozen=True)
class _Trial:
    """A task on a device, as its run will call it."""

    job: Job
    task: Task
    device: str

    def batch(self, reader: Reader) -> Any:
        return to_tensors(reader.read(0, min(_EXAMPLES, reader.count())), self.device)

    def returned(self, model: Any, reader: Reader) -> Any:
        return self._forward(model, self.batch(reader))

    def ground(self, model: Any, reader: Reader) -> Ground:
        def forward(model: Any, batch: Any) -> Any:
            with eager():  # where modules are not compiled away
                return self._forward(model, batch)

        one_by_one = self.job.model.one_by_one
        return Ground(self.task, model, forward, forward, self.batch(reader), (), one_by_one)

    def _forward(self, model: Any, batch: Any) -> Any:
        half = self.job.compute.precision == "bf16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
            return in_company(self._checked(model), batch, batch_length(batch))

    def _checked(self, model: Any) -> Callable[[Any], Any]:
        def checked(batch: Any) -> Any:
            returned = self.task.forward(model, batch)
            self.task.check(returned, batch_length(batch))
            return returned

        return checked
