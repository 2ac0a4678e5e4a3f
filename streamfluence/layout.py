"""Where everything of a run lies, and how examples are cut into batches and partitions.

Pure arithmetic and names. Batches are cut at fixed global rows and a partition
is a whole number of batches, so no product changes shape with the partitioning.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FORMAT_VERSION = 4
MANIFEST = "manifest.json"
TRAINING_LOSS = "training_loss"  # the measurement of training examples; queries may name it too


@dataclass(frozen=True)
class Span:
    """Half-open range of global rows."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(span: Span, length: int) -> Iterator[Span]:
    """Yield ``span`` cut at the multiples of ``length`` (global multiples, not relative to its start)."""
    start = span.start
    while start < span.stop:
        stop = min(span.stop, (start // length + 1) * length)
        yield Span(start, stop)
        start = stop


def partitions(count: int, partition_examples: int) -> list[Span]:
    """Return the partitions of ``count`` examples, each ``partition_examples`` long but the last."""
    return list(cut(Span(0, count), partition_examples))


def default_partition_examples(count: int, batch_size: int) -> int:
    """Return a partition length: about 128 partitions, 1,024 to 262,144 examples, whole batches."""
    wanted = min(max(count // 128, 1024), 262_144)
    return -(-wanted // batch_size) * batch_size


def collect_stage(example_set: str, checkpoint: int) -> str:
    """Return the stage that collects ``example_set`` at ``checkpoint``."""
    return f"collect/{example_set}/{checkpoint}"


def receipt_path(stage: str, partition: int) -> str:
    """Return the path of a partition's receipt inside a run."""
    return f"receipts/{stage}/{partition:08d}.json"


def attempt_path(stage: str, partition: int, attempt: str) -> str:
    """Return the path of one attempt's Zarr group inside a run."""
    return f"parts/{stage}/{partition:08d}.{attempt}"
