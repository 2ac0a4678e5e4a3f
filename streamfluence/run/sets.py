"""The example sets of a run: the training set and its query sets. Knows the store only."""

from streamfluence.errors import DamageError, InputError
from streamfluence.layout import (
    COLLECT,
    PREPARED,
    RECEIPTS,
    SCORE,
    SCORES,
    generation_path,
    score_path,
)
from streamfluence.run.opened import OpenRun

# In the place of a query set's name: scores of no query, whose readouts look at training rows alone.
NO_QUERIES = "train"


def query_count(run: OpenRun, name: str) -> int:
    """Return how many queries scores of this query set are of."""
    return 0 if name == NO_QUERIES else run.example_set(name).count


def pinned_query_sets(run: OpenRun) -> list[str]:
    """Return the names of the query sets, sorted; a listing that lost one is no answer.

    Raises:
        DamageError: If rows of a query set are there, but not what pins it.
    """
    known = run.query_sets()
    collected = run.storage.children(f"{RECEIPTS}/{COLLECT}")[0]
    lost = sorted(set(collected) - {"train", *known})
    if lost:
        raise DamageError(
            f"{run.url} has rows of the query set {lost[0]!r}, but its document "
            f"{generation_path(lost[0], 0)} is gone; repeat "
            f"`streamfluence run` with the same job, which writes it again"
        )
    return known


def named_query_set(run: OpenRun, name: str | None) -> str:
    """Return the query set of this name, or the only one; InputError if that is none."""
    known = pinned_query_sets(run)
    if name in known:
        return str(name)
    if name is not None or not known:
        raise InputError(
            f"{run.url} has no query set{'' if name is None else f' {name!r}'}; there are: "
            f"{', '.join(known) or 'none, add [queries.NAME] to the job and run it again'}"
        )
    if len(known) > 1:
        raise InputError(f"{run.url} has query sets {', '.join(known)}; name one by --queries")
    return known[0]


def score_names(run: OpenRun) -> list[str]:
    """Return the names of the scores that were asked for, sorted."""
    folders = run.storage.children(SCORES)[0]
    return [name for name in folders if run.has(score_path(name))]


def pinned_score_names(run: OpenRun) -> list[str]:
    """Return the names of the scores that were asked for, sorted; a listing that lost one is no answer.

    Raises:
        DamageError: If results are there, but not what says what they are of.
    """
    known = score_names(run)
    made = {
        name
        for top in (PREPARED, SCORE, SCORES)
        for name in run.storage.children(f"{RECEIPTS}/{top}")[0]
    }
    lost = sorted(made - set(known))
    if lost:
        raise DamageError(
            f"{run.url} has results of the scores {lost[0]!r}, but their document {score_path(lost[0])} "
            f"is gone; repeat `streamfluence score` with the same settings, which writes it again"
        )
    return known
