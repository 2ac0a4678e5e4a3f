"""Check stored bytes against their receipts."""

from typing import Any

from streamfluence.errors import DamageError
from streamfluence.stages._sets import query_sets, score_names, set_facts
from streamfluence.store import ANYTHING, Problem, RunStore

SHOWN = 5  # damaged partitions that the message names
SAMPLE = 0.05  # share of partitions whose contents a sampled check reads


def check_documents(store: RunStore) -> None:
    """Raise DamageError when what pins a query set or a result is damaged."""
    for example_set in query_sets(store):
        set_facts(store, example_set)
    for label in score_names(store):
        store.read_document(f"scores/{label}/score.json")


def _line(problem: Problem) -> str:
    """Return the first thing that is wrong with a partition, without the advice given once for all."""
    what = problem.what.removeprefix("receipt ").partition("; ")[0]
    place = "" if problem.object.startswith("receipts/") else f"{problem.object} "
    return f"{problem.stage} partition {problem.partition}: {place}{what}"


def verify(run_path: str, full: bool = False, fraction: float | None = None) -> dict[str, Any]:
    """Check structure always, and the contents of a share of the partitions, or of all with ``full``.

    Raises:
        DamageError: If anything is damaged; it lists the first partitions.
    """
    store = RunStore.open(run_path, ANYTHING)
    check_documents(store)
    share = 1.0 if full else fraction or SAMPLE
    problems = store.verify(fraction=share)
    if problems:
        first = {(p.stage, p.partition): p for p in reversed(problems)}
        shown = "; ".join(_line(first[key]) for key in sorted(first)[:SHOWN])
        more = f" (and {len(first) - SHOWN} more partitions)" if len(first) > SHOWN else ""
        raise DamageError(
            f"{run_path}: {shown}{more}; `streamfluence repair` recomputes exactly these"
        )
    return {"run": run_path, "contents_checked": share, "problems": []}
