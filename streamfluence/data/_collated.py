"""Items of a user's dataset made into batches, whose lists say whether they have one entry an example.

Which lists have is found out by collating one item twice and three times.
"""

from collections.abc import Callable, Iterable
from typing import Any

from streamfluence.batches import list_lengths, marked
from streamfluence.data._batches import batch_length, slice_batch
from streamfluence.data._source import one_sentence
from streamfluence.data.base import Batch
from streamfluence.errors import InputError

_TRIES = 8  # batches whose lists are new for which an item is collated again


class Collated:
    """The batches of one dataset.

    Args:
        name: Of the dataset, as messages name it.
        items: Returns the items of some rows.
        collate: Makes a batch of a list of items.
    """

    def __init__(
        self,
        name: str,
        items: Callable[[list[int]], list[Any]],
        collate: Callable[[list[Any]], Batch],
    ) -> None:
        self._name, self._items, self._collate = name, items, collate
        self._lists: dict[str, bool] = {}
        self._tries = 0

    def of(self, rows: list[int]) -> Batch:
        """Return the batch of some rows in this order; of none, the first row's batch without its example.

        Raises:
            InputError: If the items do not collate, or into another number of examples.
        """
        if not rows:
            return slice_batch(self.of([0]), 0, 0)
        items = self._items(rows)
        try:
            batch = self._collate(items)
        except Exception as error:
            raise InputError(
                f"items {rows[0]} to {rows[-1]} of {self._name} do not collate into a batch: "
                f"{one_sentence(error)}; give collate = 'file.py:name'"
            ) from error
        lists = list_lengths(batch)
        if lists:
            batch = marked(batch, self._by_example(lists, rows[0]), len(rows))
        if batch_length(batch) != len(rows):
            raise InputError(
                f"{len(rows)} items of {self._name} collate into {batch_length(batch)} examples"
            )
        return batch

    def _by_example(self, places: Iterable[str], row: int) -> dict[str, bool]:
        """Return of every list that was seen in a batch whether it has one entry an example.

        That a list is as long as the batch may be chance; that it grows with the batch is not.
        """
        by_example = [f"{place}/" for place, is_one in self._lists.items() if is_one]
        new = [
            place
            for place in places
            if place not in self._lists and not place.startswith(tuple(by_example))
        ]
        if new and self._tries < _TRIES:
            self._tries += 1
            try:
                item = self._items([row])[0]
                two, three = (list_lengths(self._collate([item] * n)) for n in (2, 3))
            except Exception:  # a collate with needs of its own; then lengths must do
                two, three = {}, {}
            self._lists |= {place: (two[place], three.get(place)) == (2, 3) for place in two}
        return self._lists
