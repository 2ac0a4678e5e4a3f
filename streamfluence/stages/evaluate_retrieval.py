"""Do a run's scores bring up the training examples that are known to matter for its queries?

Scores are computed a block at a time, twice, and forgotten: memory holds one
block and the best few examples of every query.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.evaluation.retrieval import FirstPass, SecondPass, chance_reciprocal_rank
from streamfluence.stages import _product
from streamfluence.stages._columns import column, has_column
from streamfluence.stages._lists import (
    checked_rows,
    distinct_ids,
    read_json,
    rows_of_ids,
    whole_numbers,
)
from streamfluence.stages._score_tasks import StoredRows, score_sides
from streamfluence.stages._sets import named_query_set, partition_count, require_complete, set_facts
from streamfluence.store import RunStore

DEFAULT_KS = (1, 10, 100)
# Whether each example of a block is relevant, (query, example).
Relevance = Callable[[_product.ScoreBlock], np.ndarray]


def evaluate_retrieval(
    run_path: str,
    relevant: str | None = None,
    same_group: bool = False,
    by_id: bool = False,
    queries: str | None = None,
    ks: Sequence[int] = DEFAULT_KS,
) -> dict[str, Any]:
    """Judge the scores of one query set against given relevant training examples.

    Args:
        relevant: JSON file: query row to a list of training rows (or ids).
        same_group: Instead: the examples of the query's own group are relevant.
        by_id: The lists hold the examples' own ids.
        queries: Name of the query set, where the run has several.
        ks: Lengths of the list that recall is taken over; those above the training set are cut.

    Returns:
        ``figures``: one row a figure with its value, by chance, and at best (where fewer than all
        relevant examples fit); and what was counted.

    Raises:
        InputError: If the file names no query, an unknown one, or a query without relevant
            examples; or no group is stored.
        IncompleteError: If rows are missing.
    """
    if (relevant is None) == (not same_group):
        raise InputError("give either --relevant FILE or --same-group")
    if not ks or min(ks) < 1:
        raise InputError(f"k = {list(ks)}; recall is taken over lists of at least one example")
    store = RunStore.open(run_path)
    example_set = named_query_set(store, queries)
    for checkpoint in range(len(store.manifest["checkpoints"])):
        require_complete(store, "train", checkpoint)
        require_complete(store, example_set, checkpoint)
    if relevant is None:
        chosen, relevance = _by_group(store, example_set)
    else:
        chosen, relevance = _by_list(store, example_set, Path(relevant), by_id)
    count = store.manifest["train"]["count"]
    longest = min(max(ks), count)
    first = FirstPass(len(chosen), longest)
    for scores, hits in _blocks(run_path, store, example_set, chosen, relevance):
        first.add(scores, hits)
    judged = first.relevant > 0
    if not judged.any():
        raise InputError(f"no query of {example_set!r} shares its group with a training example")
    second = SecondPass(first.best)
    for scores, hits in _blocks(run_path, store, example_set, chosen, relevance):
        second.add(scores, hits)
    numbers = first.relevant[judged]
    return {
        "queries": example_set,
        "judged_queries": int(judged.sum()),
        "queries_without_relevant": int((~judged).sum()),
        "examples": count,
        "mean_relevant": float(numbers.mean()),
        "figures": [
            *(_recall(first, judged, k, count) for k in sorted({min(k, count) for k in ks})),
            {
                "figure": "mean reciprocal rank",
                "value": float(second.reciprocal_rank()[judged].mean()),
                "chance": chance_reciprocal_rank(count, numbers),
                "best": 1.0,
            },
        ],
    }


def _recall(first: FirstPass, judged: np.ndarray, k: int, count: int) -> dict[str, Any]:
    best = np.minimum(k, first.relevant[judged]) / first.relevant[judged]
    return {
        "figure": f"recall@{k}",
        "value": float(first.recall(k)[judged].mean()),
        "chance": k / count,
        "best": float(best.mean()),
    }


def _blocks(
    run_path: str, store: RunStore, example_set: str, chosen: np.ndarray, relevance: Relevance
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield scores and relevance of every block of examples, both ``(query, example)``."""
    partitions = list(range(partition_count(store, "train")))
    terms = [
        _product.Term(StoredRows(store, c, partitions, True), codec, rows[chosen], weight)
        for c, (codec, rows, weight) in enumerate(score_sides(run_path, "cpu", example_set, None))
    ]
    for block in _product.score_blocks(terms, _product.rows_per_block(len(chosen))):
        yield np.where(block.valid[:, None], block.scores, -np.inf).T, relevance(block)


def _by_group(store: RunStore, example_set: str) -> tuple[np.ndarray, Relevance]:
    for name in ("train", example_set):
        if not has_column(store, name, "group"):
            raise InputError(
                f"no group is stored with {name!r}; name one by group_field in its table, in a new "
                f"run, or give --relevant FILE"
            )
    groups = column(store, example_set, "group")

    def relevance(block: _product.ScoreBlock) -> np.ndarray:
        assert block.group is not None
        return groups[:, None] == block.group

    return np.arange(len(groups)), relevance


def _by_list(
    store: RunStore, example_set: str, path: Path, by_id: bool
) -> tuple[np.ndarray, Relevance]:
    lists = _lists(store, example_set, path, by_id)
    place = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists.values()])
    rows = np.concatenate(list(lists.values()))
    order = np.argsort(rows, kind="stable")
    place, rows = place[order], rows[order]

    def relevance(block: _product.ScoreBlock) -> np.ndarray:
        stop = block.start + len(block.valid)
        low, high = np.searchsorted(rows, [block.start, stop])
        hits = np.zeros((len(lists), len(block.valid)), bool)
        hits[place[low:high], rows[low:high] - block.start] = True
        return hits

    return np.array(list(lists), np.int64), relevance


def _lists(store: RunStore, example_set: str, path: Path, by_id: bool) -> dict[int, np.ndarray]:
    """Return the rows of the relevant examples by query row, all checked."""
    given = read_json(path)
    if not isinstance(given, dict) or not given:
        raise InputError(
            f"{path} must hold an object from query row to a list of training examples, such as "
            f'{{"0": [17, 4]}}, with at least one query'
        )
    n_queries, count = set_facts(store, example_set)["count"], store.manifest["train"]["count"]
    lists = {}
    for query, values in given.items():
        if not query.isdecimal() or int(query) >= n_queries:
            raise InputError(
                f"{path}: {example_set!r} has queries 0 to {n_queries - 1}, not {query!r}"
            )
        where = f"{path}, query {query}"
        numbers = distinct_ids(values, where) if by_id else whole_numbers(values, where)
        if not len(numbers):
            raise InputError(f"{where} lists no relevant example; leave the query out")
        lists[int(query)] = numbers if by_id else checked_rows(numbers, count, where)
    return _mapped(store, lists, path) if by_id else lists


def _mapped(store: RunStore, lists: dict[int, np.ndarray], path: Path) -> dict[int, np.ndarray]:
    """Return the rows of lists of ids, from one pass over the stored ids."""
    texts = any(listed.dtype.kind == "U" for listed in lists.values())
    lists = {q: listed.astype(str) if texts else listed for q, listed in lists.items()}
    wanted = np.unique(np.concatenate(list(lists.values())))
    rows, ids = rows_of_ids(store, wanted, str(path))
    return {query: rows[np.isin(ids, listed)] for query, listed in lists.items()}
