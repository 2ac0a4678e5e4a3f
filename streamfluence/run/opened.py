"""An opened run: its bytes, and what its documents say of them."""

from functools import cached_property

from streamfluence.errors import InputError
from streamfluence.layout import QUERIES, is_document, queries_path
from streamfluence.run.manifest import (
    ExampleSet,
    Method,
    Place,
    example_set_of,
    method_of,
    place_of,
)
from streamfluence.store import RunStore


class OpenRun(RunStore):
    """A run whose manifest and example sets are read as what they mean.

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
        """Where task, data and checkpoints lie."""
        return place_of(self.manifest)

    @cached_property
    def checkpoints(self) -> range:
        """The numbers of the checkpoints."""
        return range(len(self.manifest["checkpoints"]))

    @cached_property
    def train(self) -> ExampleSet:
        """The training set."""
        return example_set_of("train", self.manifest["train"])

    def query_sets(self) -> list[str]:
        """Return the names of the query sets, sorted."""
        files = self.storage.children(QUERIES)[1]
        return [name.removesuffix(".json") for name in files if is_document(name)]

    def example_sets(self) -> list[str]:
        """Return the names of all example sets, the training set first."""
        return ["train", *self.query_sets()]

    def example_set(self, name: str) -> ExampleSet:
        """Return the training set or a query set."""
        if name == "train":
            return self.train
        known = self.query_sets()
        if name not in known:
            raise InputError(
                f"{self.url} has no example set {name!r}; there are: {', '.join(['train', *known])}"
            )
        return example_set_of(name, self.read_document(queries_path(name)))
