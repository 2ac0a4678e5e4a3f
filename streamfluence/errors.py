"""The errors a user can meet, each with the exit code its command ends with.

A user error says what was asked, what is so, and what to change. A broken
invariant of the program itself is an ``assert``, never one of these.
"""


class StreamfluenceError(Exception):
    """Base of every error with a clear message; exit code 2 unless a subclass says otherwise."""

    exit_code = 2


class InputError(StreamfluenceError):
    """A file, data set, model, task or job that cannot be used as given."""


class BudgetError(StreamfluenceError):
    """The job does not fit the memory, bytes or files it was given."""


class CoverageError(StreamfluenceError):
    """A trainable parameter whose per-example gradient cannot be captured."""


class DamageError(StreamfluenceError):
    """Stored bytes differ from what their receipt promises."""

    exit_code = 3


class IncompleteError(StreamfluenceError):
    """Partitions are missing; the message lists them."""

    exit_code = 4


class NonFiniteError(StreamfluenceError):
    """More rows are NaN or infinite than the job allows."""

    exit_code = 5


class StorageError(StreamfluenceError):
    """The storage failed (full disk, lost mount, refused request); retry later."""

    exit_code = 74


class Interrupted(StreamfluenceError):
    """Stopped by SIGTERM or SIGINT; what was committed is safe to resume from."""

    exit_code = 75
