"""An opened run: its bytes, and what its documents say of them."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import PLACE
from streamfluence.run.example_set import ExampleSet, example_set_of
from streamfluence.run.manifest import Method, method_of
from streamfluence.run.place import Place, place_of
from streamfluence.store import RunStore
from streamfluence.store.ledger import append_generation, begin_ledger, generations, set_names
from streamfluence.store.run_documents import replace_document


class OpenRun(RunStore):
    """A run whose method, place and example sets are read as what they mean.

    Its documents are read when asked for, so that one that is damaged keeps nobody from the rest.

    Raises:
        InputError: ``example_set``, if there is none of that name.
        DamageError: If a document lacks what it must have.
    """

    @cached_property
    def method(self) -> Method:
        """What decides every number, apart from the data."""
        return method_of(self.manifest)

    @cached_property
    def place(self) -> Place:
        """Where task, data and checkpoints lie.

        Raises:
            InputError: If nothing says so.
            DamageError: If what says so is damaged.
        """
        if not self.has(PLACE):
            raise InputError(
                f"{self.url} has no {PLACE}, which says where its task and data lie; {_SAY}"
            )
        try:
            return place_of(self.read_document(PLACE))
        except DamageError as error:
            raise DamageError(f"{str(error).partition(';')[0]}; {_SAY}") from error

    def move_to(self, place: Place) -> None:
        """Say from now on that things of the run lie there."""
        replace_document(self.storage, PLACE, place.content())
        vars(self).pop("place", None)

    @property
    def checkpoints(self) -> range:
        """The numbers of the checkpoints."""
        return range(len(self.manifest["checkpoints"]))

    def checkpoint_path(self, checkpoint: int) -> Path:
        """Return where a checkpoint lies."""
        return self.place.root / self.place.checkpoints[checkpoint]

    @cached_property
    def train(self) -> ExampleSet:
        """The training set."""
        return self._example_set("train")

    def query_sets(self) -> list[str]:
        """Return the names of the query sets, sorted."""
        return [name for name in set_names(self.storage) if name != "train"]

    def example_sets(self) -> list[str]:
        """Return the names of all example sets, the training set first."""
        return ["train", *self.query_sets()]

    def example_set(self, name: str) -> ExampleSet:
        """Return the training set or a query set."""
        return self.train if name == "train" else self._example_set(name)

    def begin(self, name: str, content: Mapping[str, Any]) -> None:
        """Make an example set of its first generation; see ``begin_ledger``."""
        begin_ledger(self.storage, name, self.fingerprint, content)
        vars(self).pop("train", None)

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Add a generation to an example set; see ``append_generation``."""
        append_generation(self.storage, name, self.manifest, self.fingerprint, content)
        vars(self).pop("train", None)

    def _example_set(self, name: str) -> ExampleSet:
        ledger = list(generations(self.storage, name, self.manifest, self.fingerprint))
        if ledger:
            return example_set_of(name, ledger)
        if name == "train":
            raise InputError(
                f"{self.url} does not say what its training set is; repeat `streamfluence run` with the job "
                f"that made it"
            )
        known = ", ".join(self.example_sets())
        raise InputError(f"{self.url} has no example set {name!r}; there are: {known}")


_SAY = "repeat `streamfluence run` with the job, or say where they are by `streamfluence relocate`"
