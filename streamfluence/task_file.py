"""Load a task: run the user's file, held to its digests, and make of its names what a run asks for."""

import hashlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.layout import TRAINING_LOSS
from streamfluence.likelihoods.base import Likelihood
from streamfluence.registry import member, names
from streamfluence.task import Task
from streamfluence.user_code import Files, compare, load_file, load_module


def load_task(spec: str, root: Path, promised: Mapping[str, str] | None = None) -> Task:
    """Load a task named by a job in folder ``root``.

    Args:
        promised: Digests of its files, compared before any of its code runs; None takes what is there.

    Raises:
        InputError: If it cannot be imported, lacks what a task must have, or is not as promised.
    """
    namespace, loaded = _load(spec, root, promised)
    files = loaded if promised is None else dict(promised)
    model, forward = getattr(namespace, "model", None), getattr(namespace, "forward", None)
    loss = getattr(namespace, "loss", None)
    if not callable(model):
        raise InputError(f"task {spec} defines no model(checkpoint)")
    named = getattr(namespace, "likelihood", None)
    if named is None and not callable(loss):
        raise InputError(
            f"task {spec} defines neither likelihood = 'categorical' | 'bernoulli' | 'gaussian' "
            f"(with forward) nor loss(model, batch)"
        )
    if named is not None and not callable(forward):
        raise InputError(
            f"task {spec} has a likelihood but no forward(model, batch) -> (outputs, targets)"
        )
    measurements = getattr(namespace, "measurements", {})
    if taken := sorted({"loss", "margin", TRAINING_LOSS} & set(measurements)):
        raise InputError(
            f"task {spec}: measurements names {', '.join(taken)}, which mean something already; give "
            f"your own another name"
        )
    training_loss = getattr(namespace, "training_loss", None)
    if training_loss is not None and (named is None or not callable(training_loss)):
        raise InputError(
            f"task {spec}: training_loss(outputs, targets) is a function beside a likelihood, whose "
            f"loss then measures queries; with loss(model, batch) alone that is the training loss"
        )
    return Task(
        name=Path(spec).name,
        files=files,
        likelihood=None if named is None else _likelihood(spec, named, namespace),
        _model=model,
        _forward=forward if named is not None else None,
        _loss=loss,
        _measurements=measurements,
        _training_loss=training_loss,
        train=getattr(namespace, "train", None),
    )


def refuse_other_task(spec: str, root: Path, promised: Mapping[str, str]) -> None:
    """Raise InputError unless the files of a task are as promised; runs none.

    Files of modules that are installed are only found once they are loaded.
    """
    folder, path = code_folder(spec, root), (root / spec).resolve()
    compare(promised, folder)
    name = Path(os.path.relpath(path, folder.resolve())).as_posix()
    if spec.endswith(".py") and name not in promised:
        raise InputError(
            f"task file {path} is none of those of the run, which are {', '.join(promised)} in {folder}"
        )


def code_folder(spec: str, root: Path) -> Path:
    """Return the folder that the names of a task's files are relative to.

    It is the job's, or for a file that lies elsewhere its own: so names are the same wherever the job is.
    """
    path = (root / spec).resolve()
    beside = spec.endswith(".py") and not path.is_relative_to(root.resolve())
    return path.parent if beside else root


def _likelihood(spec: str, named: Any, namespace: Any) -> Likelihood:
    if isinstance(named, Likelihood):
        return named
    known = names("likelihoods")
    if not isinstance(named, str) or named not in known:
        raise InputError(f"task {spec}: likelihood {named!r} is none of {', '.join(known)}")
    kind = member("likelihoods", named)
    options = inspect.signature(kind).parameters
    given = {name: getattr(namespace, name) for name in options if hasattr(namespace, name)}
    made: Likelihood = kind(**given)
    return made


def _load(spec: str, root: Path, promised: Mapping[str, str] | None) -> tuple[Any, Files]:
    """Return the namespace that holds the task, and the digests of all source it brought along."""
    if spec.endswith(".py"):
        path = (root / spec).resolve()
        if not path.is_file():
            raise InputError(f"task file {path} does not exist; check `task` in the job")
        name = f"streamfluence_task_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        module, files = load_file(path, code_folder(spec, root), name, promised)
        return module, files
    module_name, _, attribute = spec.partition(":")
    try:
        module, files = load_module(module_name, root, promised)
        namespace = getattr(module, attribute) if attribute else module
    except (InputError, AttributeError) as error:
        raise InputError(f"task {spec!r} cannot be imported: {error}") from error
    return namespace, files
