"""Where everything of a run lies, and how examples are cut into batches and partitions.

Pure arithmetic and names. Batches and partitions are cut from the start of a generation and a
partition is a whole number of batches, so no product changes shape with the partitioning.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FORMAT_VERSION = 6
MANIFEST = "manifest.json"  # the method
PLACE = "place.json"
TURN = "verify.json"  # whose turn it is when only a share of the bytes is verified
RECEIPTS, PARTS, DATA = "receipts", "parts", "data"
SKETCH, COLLECT, SCORE, PREPARED = "sketch", "collect", "score", "prepared"
SCAN = "scan"
SCORES, SETS, IDENTITIES = "scores", "sets", "identities"
PUBLISHED, LISTING = (
    ".zarr",
    ".objects.json",
)  # after a set's name: its rows, and what they consist of
SPEC = "score.json"
TRAINING_LOSS = "training_loss"  # the measurement of training examples; queries may name it too


@dataclass(frozen=True)
class Span:
    """Half-open range of global rows."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(span: Span, length: int) -> Iterator[Span]:
    """Yield the pieces of ``span``, each ``length`` long but the last."""
    for start in range(span.start, span.stop, length):
        yield Span(start, min(span.stop, start + length))


def default_partition_examples(count: int, batch_size: int) -> int:
    """Return a partition length: about 128 partitions, 1,024 to 262,144 examples, whole batches."""
    wanted = min(max(count // 128, 1024), 262_144)
    return -(-wanted // batch_size) * batch_size


def collect_stage(example_set: str, checkpoint: int) -> str:
    """Return the stage that collects ``example_set`` at ``checkpoint``."""
    return f"{COLLECT}/{example_set}/{checkpoint}"


def holds_rows(stage: str) -> bool:
    """Return whether the partitions of a stage are rows of examples."""
    return stage.startswith(f"{COLLECT}/")


def is_of_sketch(stage: str) -> bool:
    """Return whether a stage is a step of a sketch."""
    return stage.startswith(f"{SKETCH}/")


def sketch_stage(checkpoint: int, step: str) -> str:
    """Return the stage of one step of a checkpoint's sketch."""
    return f"{SKETCH}/{checkpoint}/{step}"


def decision_stage(checkpoint: int) -> str:
    """Return the stage whose only partition holds what the sketch of a checkpoint decided."""
    return sketch_stage(checkpoint, "decision")


def scales_stage(checkpoint: int) -> str:
    """Return the stage that holds the coordinates of one checkpoint's damping, if it has its own."""
    return sketch_stage(checkpoint, "scales")


def prepared_stage(label: str) -> str:
    """Return the stage whose only partition is what readouts of a score prepared, if any did."""
    return f"{PREPARED}/{label}"


def scan_stage(key: str) -> str:
    """Return the stage of the segments of a recorded training, walked as a digest of it all says."""
    return f"{SCAN}/{key}"


def score_stage(label: str) -> str:
    """Return the stage of the parts of a score, one for some partitions of rows."""
    return f"{SCORE}/{label}"


def result_stage(label: str) -> str:
    """Return the stage whose only partition is a score's result, merged from its parts."""
    return f"{SCORES}/{label}"


def score_path(label: str) -> str:
    """Return the path of the document that says what scores are of and how they are made."""
    return f"{SCORES}/{label}/{SPEC}"


def generation_path(example_set: str, generation: int) -> str:
    """Return the path of the document that pins one generation of an example set."""
    return f"{DATA}/{example_set}/{generation:06d}.json"


def is_document(name: str) -> bool:
    """Return whether a file of this name may be a document: not a half-written or a system's own one."""
    return name.endswith(".json") and not name.startswith(".")


def identity_path(digest: str) -> str:
    """Return the path of the kept identity of data whose table and signature have this digest."""
    return f"{IDENTITIES}/{digest[:32]}.json"


def published_path(example_set: str) -> str:
    """Return the path of an example set that ``finalise`` published."""
    return f"{SETS}/{example_set}{PUBLISHED}"


def listing_path(example_set: str) -> str:
    """Return the path of the document that says what a published set consists of."""
    return f"{SETS}/{example_set}{LISTING}"


def receipt_path(stage: str, partition: int) -> str:
    """Return the path of a partition's receipt inside a run."""
    return f"{RECEIPTS}/{stage}/{partition:08d}.json"


def attempt_path(stage: str, partition: int, attempt: str) -> str:
    """Return the path of one attempt's Zarr group inside a run."""
    return f"{PARTS}/{stage}/{partition:08d}.{attempt}"
