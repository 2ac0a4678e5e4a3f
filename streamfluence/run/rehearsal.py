"""Try a task on a few examples before its run is made, so that a mistake in it leaves nothing behind."""

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
    feature = checked_feature(job)
    model = task.model(job.root / checkpoint, feature.gradients).to(device)
    try:
        _read_labels(reader)
        returned = _returned(job, task, model, reader, device)
        task.training_loss(returned)
        if not feature.gradients:  # to plan a capture takes longer
            feature.at(_ground(job, task, model, reader, device))
        for table in job.queries.values():
            data = {key: value for key, value in table.items() if key != "measurement"}
            queries = open_reader(dict(data), Path(job.root))
            if queries.count():
                _read_labels(queries)
                asked = _returned(job, task, model, queries, device)
                measurement = table.get("measurement", "loss")
                task.measure(measurement, asked)
                if not feature.gradients:
                    feature.measure(_batch(queries, device), measurement)
    finally:
        del model
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()  # the workers load their own


def _read_labels(reader: Reader) -> None:
    count = min(_EXAMPLES, reader.count())
    reader.example_ids(0, count)
    reader.groups(0, count)


def _returned(job: Job, task: Task, model: Any, reader: Reader, device: str) -> Any:
    return _forward(job, task, device, model, _batch(reader, device))


def _ground(job: Job, task: Task, model: Any, reader: Reader, device: str) -> Ground:
    def forward(model: Any, batch: Any) -> Any:
        with eager():  # where modules are not compiled away
            return _forward(job, task, device, model, batch)

    return Ground(task, model, forward, forward, _batch(reader, device), (), job.model.one_by_one)


def _batch(reader: Reader, device: str) -> Any:
    return to_tensors(reader.read(0, min(_EXAMPLES, reader.count())), device)


def _forward(job: Job, task: Task, device: str, model: Any, batch: Any) -> Any:
    kind = torch.device(device).type
    with torch.autocast(kind, torch.bfloat16, enabled=job.compute.precision == "bf16"):
        return in_company(lambda given: _checked(task, model, given), batch, batch_length(batch))


def _checked(task: Task, model: Any, batch: Any) -> Any:
    returned = task.forward(model, batch)
    task.check(returned, batch_length(batch))
    return returned
