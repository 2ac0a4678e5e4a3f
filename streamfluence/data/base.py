"""Contract of a reader: a data set of numbered examples that can be read in any order.

Laws: reads compose (``read(0, 5)`` then ``read(5, 9)`` equals ``read(0, 9)``);
``identity`` changes when the bytes do; a read touches nothing but its own rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

Batch = Any  # a mapping, tuple or list of arrays with a leading example axis


class Reader:
    """Base of every reader.

    Args of ``__init__``: ``root`` (the job's folder, against which relative paths
    resolve) and the reader's own options by keyword.

    Attributes:
        places: Options that only say where files lie: other values of them are the same data where
            ``identity`` is the same.
    """

    places: ClassVar[tuple[str, ...]] = ()

    @property
    def own_groups(self) -> bool:
        """Whether groups are numbered by what this reader was given alone.

        The same number then means another group in more of the data. A member may set it as an
        attribute of its class.
        """
        return False

    def count(self) -> int:
        """Return the number of examples."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> Batch:
        """Return examples ``start`` to ``stop``; every array has a leading example axis."""
        raise NotImplementedError

    def take(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the examples of these rows, in this order."""
        raise NotImplementedError

    def identity(self) -> Mapping[str, Any]:
        """Return a JSON-able description that changes when the bytes or their order change."""
        raise NotImplementedError

    def stat_signature(self) -> Any:
        """Return a cheap JSON-able signature (sizes and times) that changes whenever files are written."""
        raise NotImplementedError

    def code(self) -> dict[str, str]:
        """Return the sha256 of every file of the user's code that this reader loads, by name."""
        return {}

    def expect_code(self, files: Mapping[str, str]) -> None:
        """Load no code but these files with these digests; called before anything is read.

        Raises:
            InputError: At once, or when code is loaded, if a file is another.
        """

    def preview(self, row: int) -> str | None:
        """Return one short line that shows the example to a person, or None."""
        return None

    def example_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the user's own ids of these rows, or None when there are none.

        int64, or strings of numpy's kind ``U``; the same of the two for all rows.
        """
        return None

    def groups(self, start: int, stop: int) -> np.ndarray | None:
        """Return the int64 group of each of these rows, or None when no group field is named."""
        return None

    def group_name(self, group: int) -> str:
        """Return what a person calls this group."""
        return str(group)
