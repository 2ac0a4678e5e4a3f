"""Any map-style dataset of the user's: an object with ``__len__`` and ``__getitem__``.

    reader = "python"
    dataset = "my_data.py:make_dataset"      # a dataset, or a callable that returns one
    arguments = { split = "train" }          # passed to the callable

Its bytes cannot be seen, so its identity is what can be: the source file, the arguments,
the number of items, a digest of 64 of them spread from the first to the last, and the
user's own ``identity``. A change of other items alone is not noticed; state ``identity``
(or give the dataset an ``identity()``) where that matters. An item must be the same every
time it is read: random augmentation is found and refused.

Batches may hold anything beside arrays: a list with one entry an example (strings, dicts,
tensors of different shapes) is cut like an array; ``_collated`` finds out which lists are such.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from streamfluence.data import _files, _options
from streamfluence.data._batches import input_digest, leaves
from streamfluence.data._collated import Collated
from streamfluence.data._labels import Labels
from streamfluence.data._preview import one_line, show
from streamfluence.data._shards import check_range, check_rows
from streamfluence.data._source import load_named, one_sentence
from streamfluence.data.base import Batch, Reader
from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.user_code import digest_of_source

_SAMPLED_ITEMS = 64
_REPEATED_ITEMS = 8


class Python(Reader):
    """Read a map-style dataset.

    Args:
        root: The job's folder, against which .py files resolve.
        dataset: ``file.py:name`` or ``package.module:name``.
        arguments: Keyword arguments for ``dataset`` when it is a callable.
        collate: ``file.py:name`` of a function from a list of items to a batch; by default
            ``torch.utils.data.default_collate``.
        id_field: Place in a batch of the user's own ids, whole numbers or strings, such as
            ``"file"`` or ``"meta/file"``.
        group_field: Place in a batch of each example's group, whole numbers.
        identity: Your own version of the data; change it when items change.

    A dataset may also define ``identity()``, ``preview(row)`` and ``__getitems__(rows)``; without
    the fields, ``ids()`` or ``example_id(row)`` (whole numbers or strings), ``groups()`` or
    ``group(row)`` (the same), and ``group_name(group)``.

    Raises:
        InputError: If the dataset cannot be made, is not map-style, or an item fails.
    """

    own_groups = True

    def __init__(
        self,
        root: Path,
        *,
        dataset: str,
        arguments: Mapping[str, Any] | None = None,
        collate: str | None = None,
        identity: str | None = None,
        id_field: str | None = None,
        group_field: str | None = None,
    ) -> None:
        self._root = root
        self._reference = _options.text("dataset", dataset)
        self._arguments = dict(arguments or {})
        self._collate_reference = collate
        self._given_identity = identity
        self._collated = Collated(self._reference, self._items, self._collate)
        id_field = None if id_field is None else _options.text("id_field", id_field)
        group_field = None if group_field is None else _options.text("group_field", group_field)
        self._ids = Labels("id", id_field, "ids", "example_id")
        self._groups = Labels("group", group_field, "groups", "group")
        self._promised: Mapping[str, str] | None = None

    def count(self) -> int:
        """Return ``len(dataset)``."""
        return len(self._dataset)

    def read(self, start: int, stop: int) -> Batch:
        """Return items ``start`` to ``stop``, collated."""
        check_range(start, stop, self.count())
        batch = self._unlabelled(start, stop)
        for labels in (self._ids, self._groups):
            labels.see(start, stop, batch)
        return batch

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the items ``rows``, collated in this order."""
        return self._batch(check_rows(rows, self.count()).tolist())

    def identity(self) -> dict[str, Any]:
        """Return source, arguments, count and the digest of 64 items (the module says what it misses).

        Raises:
            InputError: If an item differs between two reads.
        """
        seen = self._seen()
        self._check_repeatable(seen["sample"])
        sources = [
            {"name": path.name, "sha256": digest_of_source(path.read_bytes())}
            for path in self._sources
        ]
        return {"reader": "python", "sources": sources, **seen}

    def stat_signature(self) -> dict[str, Any]:
        """Return what ``identity`` returns with the sources by size and time instead of digest."""
        return {"sources": _files.file_signatures(self._sources), **self._seen()}

    def preview(self, row: int) -> str:
        """Return ``dataset.preview(row)`` where there is one, else the item's fields on one line."""
        own = getattr(self._dataset, "preview", None)
        if callable(own):
            return one_line(str(own(row)))
        shown = [show(place.strip("/"), _first(leaf)) for place, leaf in leaves(self.take([row]))]
        return one_line(" | ".join(shown))

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the ids of these rows: of ``id_field``, or of the dataset's own methods."""
        check_range(start, stop, self.count())
        return self._ids.of(self._dataset, start, stop, self._unlabelled)

    def groups(self, start: int, stop: int) -> np.ndarray | None:
        """Return the groups of these rows, int64; groups that are strings are numbered by name.

        Raises:
            InputError: If ``group_field`` holds strings, which could only be numbered after reading all.
        """
        check_range(start, stop, self.count())
        groups = self._groups.of(self._dataset, start, stop, self._unlabelled)
        if groups is not None and self._named_groups is not None:
            return np.searchsorted(self._named_groups, groups).astype(np.int64)
        if groups is not None and groups.dtype.kind == "U":
            raise InputError(
                f"group_field = {self._groups.field!r} holds strings; give whole numbers, or give the "
                f"dataset groups() or group(row) instead, which may return strings"
            )
        return groups

    def group_name(self, group: int) -> str:
        """Return ``dataset.group_name(group)`` where there is one, else the group itself."""
        names = self._named_groups
        known = names is not None and 0 <= group < len(names)
        named = str(names[group]) if names is not None and known else group
        own = getattr(self._dataset, "group_name", None)
        return str(own(named)) if callable(own) else str(named)

    @cached_property
    def _named_groups(self) -> np.ndarray | None:
        """The names of all groups in order, where the dataset's methods give strings."""
        if self._groups.field is not None or not self.count():
            return None
        first = self._groups.of(self._dataset, 0, 1, self._unlabelled)
        if first is None or first.dtype.kind != "U":
            return None
        return np.unique(self._groups.all_of(self._dataset, self._unlabelled))

    def _unlabelled(self, start: int, stop: int) -> Batch:
        return self._batch(list(range(start, stop)))

    def _batch(self, rows: list[int]) -> Batch:
        if not rows and not self.count():
            raise InputError(f"{self._reference} has no items")
        return self._collated.of(rows)

    def code(self) -> dict[str, str]:
        """Return the sha256 of every file that was loaded, the neighbours of the named ones too."""
        return {**self._loaded[2], **self._collating[2]}

    def expect_code(self, files: Mapping[str, str]) -> None:
        """Load no code but these files with these digests."""
        self._promised = dict(files)

    @cached_property
    def _loaded(self) -> tuple[Any, Path | None, dict[str, str]]:
        return load_named("dataset", self._reference, self._root, self._promised)

    @cached_property
    def _dataset(self) -> Any:
        made = self._loaded[0]
        if isinstance(made, type) or not _is_map_style(made):
            made = self._make(made)
        if not _is_map_style(made):
            raise InputError(
                f"{self._reference} gives {type(made).__name__}, which lacks __len__ or "
                f"__getitem__; rows are read in any order, so the dataset must be map-style"
            )
        return made

    @cached_property
    def _collating(self) -> tuple[Any, Path | None, dict[str, str]]:
        if self._collate_reference is None:
            return default_collate, None, {}
        return load_named("collate", self._collate_reference, self._root, self._promised)

    def _collate(self, items: list[Any]) -> Batch:
        return self._collating[0](items)

    @property
    def _sources(self) -> list[Path]:
        """The user's source files, each once; those of torch are not."""
        found = (self._loaded[1], self._collating[1])
        return list(dict.fromkeys(path for path in found if path is not None))

    def _make(self, function: Any) -> Any:
        if not callable(function):
            raise InputError(f"{self._reference} is neither a dataset nor callable")
        try:
            return function(**self._arguments)
        except StreamfluenceError:
            raise
        except Exception as error:
            raise InputError(f"{self._reference} failed: {one_sentence(error)}") from error

    def _items(self, rows: list[int]) -> list[Any]:
        row = rows[0]
        try:
            if hasattr(self._dataset, "__getitems__"):
                return list(self._dataset.__getitems__(rows))
            items = []
            for row in rows:
                items.append(self._dataset[row])
            return items
        except Exception as error:
            raise InputError(
                f"item {row} of {self._reference} failed: {one_sentence(error)}"
            ) from error

    def _seen(self) -> dict[str, Any]:
        """Return what can be seen of the data besides its source files; reads 64 items."""
        own = getattr(self._dataset, "identity", None)
        return {
            "dataset": self._reference,
            "arguments": self._arguments,
            "count": self.count(),
            "sample": [self._item_digest(row) for row in self._sampled_rows()],
            "given": self._given_identity,
            "own": str(own()) if callable(own) else None,
            **self._fields(),
        }

    def _fields(self) -> dict[str, str]:
        given = {"id_field": self._ids.field, "group_field": self._groups.field}
        return {option: field for option, field in given.items() if field is not None}

    def _sampled_rows(self) -> list[int]:
        spread = np.linspace(0, self.count() - 1, min(_SAMPLED_ITEMS, self.count()))
        rows: list[int] = spread.round().astype(int).tolist()
        return rows

    def _item_digest(self, row: int) -> str:
        return f"{input_digest(self.take([row])):08x}"

    def _check_repeatable(self, sample: list[str]) -> None:
        for row, digest in list(zip(self._sampled_rows(), sample, strict=True))[:_REPEATED_ITEMS]:
            if self._item_digest(row) != digest:
                raise InputError(
                    f"item {row} of {self._reference} differs between two reads; switch random "
                    f"augmentation off, or scores would be of data nobody trained on"
                )


def _is_map_style(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _first(leaf: Any) -> np.ndarray:
    """Return the first example of a leaf of a batch; half precision is widened for numpy."""
    first = leaf[0]
    if isinstance(first, Tensor):
        first = first.detach().cpu()
        return np.asarray(first.float() if first.is_floating_point() else first)
    plain = isinstance(first, (str, bytes, int, float, np.generic, np.ndarray))
    return np.asarray(first if plain else repr(first))
