"""What a walk looks up of a recorded training: its weights in a model, its examples in the training set."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamfluence.errors import DamageError, InputError
from streamfluence.features.gradient import Gradient
from streamfluence.recorded import Recorded, Step, open_record, weights_path
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.feature import feature_of
from streamfluence.run.session import Session


def refuse_what_is_not_followed(recorded: Recorded) -> None:
    """Raise InputError unless the steps of a record are those of plain SGD."""
    groups = [group for step in recorded.steps for group in step.groups]
    what = ""
    if recorded.optimizer != "SGD":
        what = f"was trained by {recorded.optimizer}"
    elif any(group.momentum for group in groups):
        what = "was trained with momentum"
    elif recorded.maximize:
        what = "was trained to climb"
    elif any(len(set(step.groups)) > 1 for step in recorded.steps):
        what = "has groups of weights with rates or decays of their own"
    if what:
        raise InputError(
            f"{recorded.folder} {what}, and scans follow plain SGD; train so, or score stored rows"
        )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, or nothing of what is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pinned_record(session: Session, said: Mapping[str, Any]) -> Recorded:
    """Return the record of a score as it was when that was asked for."""
    run = session.run
    found = open_record(run.place.root / said["record"])
    until = found.until(file_digest(run.checkpoint_path(0)))
    if until is None or until.digest != said["digest"]:
        raise InputError(
            f"the record in {found.folder} is another than scores of {run.url} were asked of; put back what "
            "was there, or score under another name"
        )
    return until


class Weights:
    """The run's feature at the weights before a step; one model, into which weights are loaded.

    Raises:
        DamageError: If weights are not what was recorded.
        InputError: If training moved other weights than take part.
    """

    def __init__(self, session: Session, recorded: Recorded) -> None:
        self._session, self._recorded = session, recorded
        self._number = -1
        self._feature: Gradient | None = None

    def __call__(self, number: int) -> Gradient:
        if self._feature is None:
            self._model = self._loaded(number)
            feature = feature_of(self._session.run.method)
            assert isinstance(feature, Gradient), "other features are refused before"
            feature.at(AtCheckpoint(self._session, 0).ground(self._model))
            self._refuse_others(feature)
            self._feature, self._number = feature, number
        if number != self._number:
            self._session.task.load(self._model, self._loaded(number).state_dict())
            self._number = number
        return self._feature

    def _loaded(self, number: int) -> torch.nn.Module:
        path = weights_path(self._recorded.folder, number)
        if file_digest(path) != self._recorded.digests[number]:
            raise DamageError(f"{path} is not what was recorded; put it back, or record again")
        return self._session.task.model(path).to(self._session.device)

    def _refuse_others(self, feature: Gradient) -> None:
        moved = {name for group in self._recorded.parameters for name in group}
        taking_part = {name for block in feature.blocks for name in block.parameters}
        if moved == taking_part:
            return
        name = min(moved ^ taking_part)
        what = "trained, but takes no part" if name in moved else "not trained, but takes part"
        raise InputError(
            f"the weight {name!r} was {what}; let model.exclude leave out what was not trained, and nothing "
            "else"
        )


class RowsOfSteps:
    """The rows of the training set that the examples of a step are."""

    def __init__(self, session: Session) -> None:
        self._session, self._count = session, session.run.train.count
        self._known: dict[str, int] | None = None

    def __call__(self, number: int, step: Step) -> np.ndarray:
        found = [self._row(number, example) for example in step.examples]
        return np.array(found, np.int64)

    def _row(self, number: int, example: int | str) -> int:
        row = example if isinstance(example, int) else self._by_id().get(example, -1)
        if not 0 <= row < self._count:
            raise InputError(
                f"step {number} of the record has the example {example!r}, which the training set of "
                f"{self._count:,} examples has not; record row numbers from 0, or ids of its reader"
            )
        return row

    def _by_id(self) -> dict[str, int]:
        if self._known is None:
            ids = self._session.reader("train").example_ids(0, self._count)
            named = [] if ids is None else ids.tolist()
            self._known = {str(each): row for row, each in enumerate(named)}
        return self._known
