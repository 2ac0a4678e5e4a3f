"""The example sets of a run: the training set and its query sets. Knows the store only."""

from typing import Any

from streamfluence.errors import InputError
from streamfluence.store import RunStore


def set_facts(store: RunStore, example_set: str) -> dict[str, Any]:
    """Return the pinned facts of a set: table, count, partition_examples, measurement, identity."""
    if example_set == "train":
        return {**store.manifest["train"], "measurement": "loss"}
    known = query_sets(store)
    if example_set not in known:
        raise InputError(
            f"{store.url} has no example set {example_set!r}; there are: {', '.join(['train', *known])}"
        )
    return store.read_document(f"queries/{example_set}.json")


def query_sets(store: RunStore) -> list[str]:
    """Return the names of the query sets, sorted."""
    return [name.removesuffix(".json") for name in store.storage.children("queries")[1]]


def score_names(store: RunStore) -> list[str]:
    """Return the names of the scores that were asked for, sorted."""
    folders = store.storage.children("scores")[0]
    return [name for name in folders if store.has(f"scores/{name}/score.json")]


def partition_count(store: RunStore, example_set: str) -> int:
    """Return into how many partitions a set is cut."""
    facts = set_facts(store, example_set)
    return -(-facts["count"] // facts["partition_examples"])


def plan_stage(checkpoint: int) -> str:
    """Return the stage whose only partition holds what the sketch of a checkpoint decided."""
    return f"sketch/{checkpoint}/plan"
