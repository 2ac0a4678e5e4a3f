"""The example sets of a run: the training set and its query sets. Knows the store only."""

from typing import Any

from streamfluence.errors import DamageError, IncompleteError, InputError
from streamfluence.layout import TRAINING_LOSS, collect_stage
from streamfluence.store import RunStore


def set_facts(store: RunStore, example_set: str) -> dict[str, Any]:
    """Return the pinned facts of a set: table, count, partition_examples, measurement, identity."""
    if example_set == "train":
        return {**store.manifest["train"], "measurement": TRAINING_LOSS}
    known = query_sets(store)
    if example_set not in known:
        raise InputError(
            f"{store.url} has no example set {example_set!r}; there are: {', '.join(['train', *known])}"
        )
    return store.read_document(f"queries/{example_set}.json")


def query_sets(store: RunStore) -> list[str]:
    """Return the names of the query sets, sorted."""
    return [name.removesuffix(".json") for name in store.storage.children("queries")[1]]


def pinned_query_sets(store: RunStore) -> list[str]:
    """Return the names of the query sets, sorted; a listing that lost one is no answer.

    Raises:
        DamageError: If rows of a query set are there, but not what pins it.
    """
    known = query_sets(store)
    collected = store.storage.children("receipts/collect")[0]
    lost = sorted(set(collected) - {"train", *known})
    if lost:
        raise DamageError(
            f"{store.url} has rows of the query set {lost[0]!r}, but its document queries/{lost[0]}.json "
            f"is gone; repeat `streamfluence run` with the same job, which writes it again"
        )
    return known


def named_query_set(store: RunStore, name: str | None) -> str:
    """Return the query set of this name, or the only one; InputError if that is none."""
    known = pinned_query_sets(store)
    if name in known:
        return str(name)
    if name is not None or not known:
        raise InputError(
            f"{store.url} has no query set{'' if name is None else f' {name!r}'}; there are: "
            f"{', '.join(known) or 'none, add [queries.NAME] to the job and run it again'}"
        )
    if len(known) > 1:
        raise InputError(f"{store.url} has query sets {', '.join(known)}; name one by --queries")
    return known[0]


def score_names(store: RunStore) -> list[str]:
    """Return the names of the scores that were asked for, sorted."""
    folders = store.storage.children("scores")[0]
    return [name for name in folders if store.has(score_path(name))]


def pinned_score_names(store: RunStore) -> list[str]:
    """Return the names of the scores that were asked for, sorted; a listing that lost one is no answer.

    Raises:
        DamageError: If results are there, but not what says what they are of.
    """
    known = score_names(store)
    made = {
        name for top in ("score", "scores") for name in store.storage.children(f"receipts/{top}")[0]
    }
    lost = sorted(made - set(known))
    if lost:
        raise DamageError(
            f"{store.url} has results of the scores {lost[0]!r}, but their document {score_path(lost[0])} "
            f"is gone; repeat `streamfluence score` with the same settings, which writes it again"
        )
    return known


def score_path(label: str) -> str:
    """Return the path of the document that says what scores are of and how they are made."""
    return f"scores/{label}/score.json"


def partition_count(store: RunStore, example_set: str) -> int:
    """Return into how many partitions a set is cut."""
    facts = set_facts(store, example_set)
    return -(-facts["count"] // facts["partition_examples"])


def plan_stage(checkpoint: int) -> str:
    """Return the stage whose only partition holds what the sketch of a checkpoint decided."""
    return f"sketch/{checkpoint}/plan"


def scales_stage(checkpoint: int) -> str:
    """Return the stage that holds the coordinates of one checkpoint's damping, if it has its own."""
    return f"sketch/{checkpoint}/scales"


def require_complete(store: RunStore, example_set: str, checkpoint: int) -> None:
    """Raise IncompleteError, with what is missing, unless every row of a set is there."""
    missing = store.missing(
        collect_stage(example_set, checkpoint), partition_count(store, example_set)
    )
    if missing:
        refuse_missing(store, example_set, missing)


def refuse_missing(store: RunStore, example_set: str, missing: list[int]) -> None:
    """Raise IncompleteError that lists the missing partitions of a set."""
    listed = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    raise IncompleteError(
        f"{store.url}: {len(missing)} of {partition_count(store, example_set)} partitions of "
        f"{example_set!r} are missing ({listed}); a missing row is not a zero, so run "
        f"`streamfluence collect` first"
    )
