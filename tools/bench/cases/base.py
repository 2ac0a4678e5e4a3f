"""What a case of the fidelity benchmark is: a task file, its data, and how its nets are trained."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

FOLDER = Path(__file__).parent
DATA = FOLDER.parent / "data"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the ground truth of a case; it is stored with it.

    Attributes:
        optimizer: ``sgd``, ``adam`` (weight decay in the gradient) or ``adamw`` (apart from it).
        epochs: Passes over the examples of a net; the last batch of a pass may be short.
        steps: Instead of ``epochs``: so many whole batches, however many examples there are.
        schedule: ``constant``, or ``cosine`` to zero.
        subset_share: Share of the examples in each subset.
        seeds: Train the subsets; ``model_seeds`` train on all examples and give the nets whose
            scores are judged. The two sets are disjoint.
    """

    learning_rate: float = 1e-3
    epochs: int | None = None
    batch_size: int = 128
    weight_decay: float = 0.0
    n_subsets: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    model_seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    split_seed: int = 0
    subset_seed: int = 12345
    optimizer: str = "adam"
    momentum: float = 0.0
    steps: int | None = None
    schedule: str = "constant"
    subset_share: float = 0.5


@dataclass(frozen=True)
class Split:
    """Fields of the training set and of the queries, arrays with an example axis first.

    Queries are in an order that says nothing of them.
    """

    train: Mapping[str, np.ndarray]
    queries: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, train: slice, queries: slice) -> "Split":
        """Return inputs and targets of both, cut out of arrays that hold all."""
        return cls({"x": x[train], "y": y[train]}, {"x": x[queries], "y": y[queries]})

    @property
    def count(self) -> int:
        return len(next(iter(self.train.values())))

    @property
    def n_named(self) -> int:
        """How many queries, the first, a job names; the others are asked once its rows are stored."""
        return (len(next(iter(self.queries.values()))) + 1) // 2


@dataclass(frozen=True)
class Case:
    """One net, its data and its ground truth.

    Attributes:
        key: What the command line calls it.
        name: Of its module and its stored truth.
        title: For a person.
        data: Returns the split, the same for everyone.
        dampings: Given to the exact references.
        task_name: Whose task file it uses, where not its own.
        slow: A job of the library takes a minute; only what matters most is run, on fewer nets.
        models_at_once: Nets trained as one stack; as many as stay in the cache.
    """

    key: str
    name: str
    title: str
    recipe: Recipe
    data: Callable[[], Split]
    dampings: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    task_name: str | None = None
    slow: bool = False
    models_at_once: int = 25

    @property
    def task_path(self) -> Path:
        return FOLDER / f"{self.task_name or self.name}_task.py"

    @property
    def truth_path(self) -> Path:
        return DATA / f"{self.name}.npz"

    @property
    def reference_path(self) -> Path:
        """Where scores of references too slow for every run are kept."""
        return DATA / f"{self.name}_reference.npz"

    def job(self) -> dict[str, Any]:
        """Return what a user who trained like this states of it in a job, dotted keys to values."""
        recipe, count = self.recipe, self.data().count
        steps = recipe.steps or (recipe.epochs or 0) * -(-count // recipe.batch_size)
        rate = recipe.learning_rate * (0.5 if recipe.schedule == "cosine" else 1.0)
        told: dict[str, Any] = {"learning_rate": rate, "steps": steps}
        if recipe.optimizer == "sgd":
            told["momentum"] = recipe.momentum
        else:
            told |= {"optimizer": "adam", "batch_size": recipe.batch_size}
        if recipe.optimizer != "adamw":
            told["weight_decay"] = recipe.weight_decay
        return {f"curvature.{key}": value for key, value in told.items()}

    def task(self) -> ModuleType:
        """Return the task file as a module; ``network()`` in it is the untrained net."""
        found = importlib.util.spec_from_file_location(f"{self.name}_task", self.task_path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    def n_weights(self) -> int:
        """Return the number of weights of the net."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, in the order of flat weights."""
        network: nn.Module = self.task().network()
        return {name: tuple(weight.shape) for name, weight in network.named_parameters()}
