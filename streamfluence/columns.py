"""What is stored of an example beside and with its row: one table, where every column has its name.

A column is an array of a partition of rows. Who writes, reads, counts or publishes one takes its name
from here, and :data:`COLUMNS` says what it holds.
"""

from dataclasses import dataclass

ROWS, SCALE = "rows", "scale"
EXAMPLE_ID, GROUP = "example_id", "group"
LOSS, GRAD_NORM, SELF_INFLUENCE = "loss", "grad_norm", "self_influence"
FLAGS = "flags"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        dtype: Numpy's name of it; None where the codec says it.
        axes: Names of its axes. Strings are stored as bytes, with an axis more and of type ``uint8``.
        optional: Whether a set may be without it.
        measured: Whether it is a number that was measured, so that a scale may look at it.
    """

    dtype: str | None
    axes: tuple[str, ...] = ("example",)
    optional: bool = False
    measured: bool = False


COLUMNS = {
    ROWS: Column(None, ("example", "code")),  # codes of training rows, numbers of queries
    SCALE: Column(None, ("example", "band"), optional=True),  # of codes; queries have none
    EXAMPLE_ID: Column("int64"),  # the user's, or the row number
    LOSS: Column("float32", measured=True),  # what was measured, in the unit of the measurement
    GRAD_NORM: Column("float32", measured=True),  # norm of the features before they are whitened
    SELF_INFLUENCE: Column("float32", measured=True),  # squared norm of the whitened features
    GROUP: Column("int64", optional=True),  # class or source, where the reader knows one
    FLAGS: Column("uint8"),  # not 0 where the row was not finite and must not be scored
}
MEASURED = tuple(name for name, column in COLUMNS.items() if column.measured)
# Bytes an example of what is stored beside its row, whatever the codec; ids that are strings take more.
# A name of a dtype ends in its bits; NumPy is not asked, since the command line loads none of it.
BYTES_BESIDE = sum(int(c.dtype.lstrip("uintfloa")) // 8 for c in COLUMNS.values() if c.dtype)
