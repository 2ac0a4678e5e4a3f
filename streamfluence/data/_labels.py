"""Ids and groups of a user's dataset: from fields of its batches, or from its own methods.

A dataset may define ``ids()`` or ``example_id(row)``, ``groups()`` or ``group(row)``, and
``group_name(group)``; a sequence ``ids`` or ``groups`` with one entry an example does as well.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from streamfluence.batches import leaves
from streamfluence.data._ids import texts, whole
from streamfluence.data._source import one_sentence
from streamfluence.errors import InputError, StreamfluenceError

_KEPT_READS = 16  # more than are read ahead of what is computed


class Labels:
    """One label an example: its id, or its group.

    Args:
        what: ``id`` or ``group``, for messages.
        field: Place of the label in a batch, such as ``"file"`` or ``"meta/file"``; or None.
        every: Name of the dataset's method, or sequence, that gives all labels.
        each: Name of the dataset's method that gives the label of one row.
    """

    def __init__(self, what: str, field: str | None, every: str, each: str) -> None:
        self.what, self.field, self._every, self._each = what, field, every, each
        self._seen: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._all: np.ndarray | None = None

    def see(self, start: int, stop: int, batch: Any) -> None:
        """Keep the labels of a batch that was read, so that it need not be read for them again."""
        if self.field is not None:
            self._seen[start, stop] = self._of_batch(batch)
            while len(self._seen) > _KEPT_READS:
                self._seen.popitem(last=False)

    def of(
        self, dataset: Any, start: int, stop: int, read: Callable[[int, int], Any]
    ) -> np.ndarray | None:
        """Return the labels of some rows, int64 or strings of kind ``U``; None if there are none."""
        if self.field is not None:
            found = self._seen.pop((start, stop), None)
            return self._of_batch(read(start, stop)) if found is None else found
        if self._all is None:
            every = self._given_at_once(dataset)
            if every is not None:
                self._all = every
        if self._all is not None:
            return self._all[start:stop]
        each = getattr(dataset, self._each, None)
        if not _takes(each, 1):
            return None
        return self._checked([self._call(each, row) for row in range(start, stop)], self._each)

    def all_of(self, dataset: Any, read: Callable[[int, int], Any]) -> np.ndarray:
        """Return the labels of all rows, which the dataset's methods give, and keep them."""
        self._all = self.of(dataset, 0, len(dataset), read)
        assert self._all is not None
        return self._all

    def _given_at_once(self, dataset: Any) -> np.ndarray | None:
        given = getattr(dataset, self._every, None)
        if _takes(given, 0):
            found = self._checked(self._call(given), self._every)
            if len(found) != len(dataset):
                raise InputError(
                    f"{self._every}() of the dataset gives {len(found):,} entries for "
                    f"{len(dataset):,} examples; it must give one an example"
                )
            return found
        if isinstance(given, list | tuple | np.ndarray | Tensor) and len(given) == len(dataset):
            return self._checked(given, self._every)
        return None

    def _of_batch(self, batch: Any) -> np.ndarray:
        found = {place.strip("/"): leaf for place, leaf in leaves(batch)}
        if self.field in found:
            return self._checked(found[self.field], f"field {self.field!r}")
        for place, leaf in found.items():
            name = str(self.field).removeprefix(f"{place}/" if place else "")
            if isinstance(leaf, list | tuple) and all(
                isinstance(each, dict) and name in each for each in leaf
            ):
                return self._checked([each[name] for each in leaf], f"field {self.field!r}")
        raise InputError(
            f"{self.what}_field = {self.field!r} is no field of a batch; there are: "
            f"{', '.join(filter(None, found)) or 'none with a name'}"
        )

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except StreamfluenceError:
            raise
        except Exception as error:
            name = self._each if arguments else self._every
            raise InputError(f"{name}() of the dataset failed: {one_sentence(error)}") from error

    def _checked(self, labels: Any, where: str) -> np.ndarray:
        try:
            array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        except ValueError:  # a ragged list
            array = np.empty((), object)
        if array.dtype == object and all(isinstance(each, str) for each in array.ravel()):
            array = array.astype(str)
        if array.ndim == 1 and (array.dtype.kind in "biu" or not array.size):
            return whole(array, where)
        if array.ndim == 1 and array.dtype.kind in "US" and _all_text(labels):
            return texts(array, where)
        raise InputError(
            f"{where} must give one whole number or string an example as its {self.what}, got "
            f"{repr(labels)[:60]}"
        )


def _all_text(labels: Any) -> bool:
    """Return whether a list holds strings only; numpy would make strings of numbers among them."""
    return not isinstance(labels, Sequence) or all(isinstance(x, str | bytes) for x in labels)


def _takes(function: Any, arguments: int) -> TypeGuard[Callable[..., Any]]:
    """Return whether something can be called with so many arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True
