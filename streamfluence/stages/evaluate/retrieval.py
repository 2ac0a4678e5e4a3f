"""Do a run's scores bring up the training examples that are known to matter for its queries?

Scores are computed a block at a time, twice, and forgotten: memory holds one
block and the best few examples of every query.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.columns import GROUP
from streamfluence.errors import InputError
from streamfluence.evaluation.lists import (
    checked_rows,
    distinct_ids,
    read_json,
    rows_of_ids,
    whole_numbers,
)
from streamfluence.evaluation.retrieval import FirstPass, SecondPass, chance_reciprocal_rank
from streamfluence.readouts.base import ScoreBlock
from streamfluence.run.columns import column, has_column
from streamfluence.run.opened import OpenRun
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.sets import named_query_set
from streamfluence.scoring.queries import Queries

DEFAULT_KS = (1, 10, 100)
# Whether each example of a block is relevant for some of the queries, (query, example).
Relevance = Callable[[ScoreBlock, np.ndarray], np.ndarray]


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
    run = OpenRun.open(run_path)
    example_set = named_query_set(run, queries)
    for name in ("train", example_set):
        for rows in stored_rows(run, name):
            rows.require_complete()
    if relevant is None:
        chosen, relevance = _by_group(run, example_set)
    else:
        chosen, relevance = _by_list(run, example_set, Path(relevant), by_id)
    count = run.train.count
    lengths = sorted({min(k, count) for k in ks})
    against = Queries(run, example_set)
    found = [_judge(against, tile, chosen, relevance, lengths) for tile in against.tiles()]
    n_relevant, recalls, ranks = (
        np.concatenate(part, axis=-1) for part in zip(*found, strict=True)
    )
    judged = n_relevant > 0
    if not judged.any():
        raise InputError(f"no query of {example_set!r} shares its group with a training example")
    numbers = n_relevant[judged]
    return {
        "queries": example_set,
        "judged_queries": int(judged.sum()),
        "queries_without_relevant": int((~judged).sum()),
        "examples": count,
        "mean_relevant": float(numbers.mean()),
        "figures": [
            *(
                _recall(k, count, recall[judged], numbers)
                for k, recall in zip(lengths, recalls, strict=True)
            ),
            {
                "figure": "mean reciprocal rank",
                "value": float(ranks[judged].mean()),
                "chance": chance_reciprocal_rank(count, numbers),
                "best": 1.0,
            },
        ],
    }


def _recall(k: int, count: int, recall: np.ndarray, relevant: np.ndarray) -> dict[str, Any]:
    best = np.minimum(k, relevant) / relevant
    return {
        "figure": f"recall@{k}",
        "value": float(recall.mean()),
        "chance": k / count,
        "best": float(best.mean()),
    }


def _judge(
    queries: Queries,
    tile: tuple[int, int],
    chosen: np.ndarray,
    relevance: Relevance,
    lengths: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of the chosen queries of one tile how many examples are relevant, recall and reciprocal rank.

    Shapes ``(query,)``, ``(length, query)`` and ``(query,)``. Reads the training rows twice.
    """
    mine = np.flatnonzero((chosen >= tile[0]) & (chosen < tile[1]))
    if not len(mine):
        return np.zeros(0, np.int64), np.zeros((len(lengths), 0)), np.zeros(0)
    partitions = list(range(queries.run.train.partitions))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block in queries.blocks(partitions, tile, chosen[mine] - tile[0]):
            scores = np.where(block.valid[:, None], block.scores, -np.inf).T
            yield scores, relevance(block, mine)

    first = FirstPass(len(mine), max(lengths))
    for scores, hits in blocks():
        first.add(scores, hits)
    second = SecondPass(first.best)
    for scores, hits in blocks():
        second.add(scores, hits)
    recalls = np.stack([first.recall(k) for k in lengths])
    return first.relevant, recalls, second.reciprocal_rank()


def _by_group(run: OpenRun, example_set: str) -> tuple[np.ndarray, Relevance]:
    for name in ("train", example_set):
        if not has_column(StoredRows(run, name, 0), GROUP):
            raise InputError(
                f"no group is stored with {name!r}; name one by group_field in its table, in a new "
                f"run, or give --relevant FILE"
            )
    groups = column(StoredRows(run, example_set, 0), GROUP)

    def relevance(block: ScoreBlock, mine: np.ndarray) -> np.ndarray:
        assert block.group is not None
        same: np.ndarray = groups[mine, None] == block.group
        return same

    return np.arange(len(groups)), relevance


def _by_list(
    run: OpenRun, example_set: str, path: Path, by_id: bool
) -> tuple[np.ndarray, Relevance]:
    lists = _lists(run, example_set, path, by_id)
    place = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists.values()])
    rows = np.concatenate(list(lists.values()))
    order = np.argsort(rows, kind="stable")
    place, rows = place[order], rows[order]

    def relevance(block: ScoreBlock, mine: np.ndarray) -> np.ndarray:
        stop = block.start + len(block.valid)
        low, high = np.searchsorted(rows, [block.start, stop])
        line = np.full(len(lists), -1)
        line[mine] = np.arange(len(mine))
        lines = line[place[low:high]]
        hits = np.zeros((len(mine), len(block.valid)), bool)
        hits[lines[lines >= 0], rows[low:high][lines >= 0] - block.start] = True
        return hits

    return np.array(list(lists), np.int64), relevance


def _lists(run: OpenRun, example_set: str, path: Path, by_id: bool) -> dict[int, np.ndarray]:
    """Return the rows of the relevant examples by query row, all checked."""
    given = read_json(path)
    if not isinstance(given, dict) or not given:
        raise InputError(
            f"{path} must hold an object from query row to a list of training examples, such as "
            f'{{"0": [17, 4]}}, with at least one query'
        )
    n_queries, count = run.example_set(example_set).count, run.train.count
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
    return _mapped(run, lists, path) if by_id else lists


def _mapped(run: OpenRun, lists: dict[int, np.ndarray], path: Path) -> dict[int, np.ndarray]:
    """Return the rows of lists of ids, from one pass over the stored ids."""
    texts = any(listed.dtype.kind == "U" for listed in lists.values())
    lists = {q: listed.astype(str) if texts else listed for q, listed in lists.items()}
    wanted = np.unique(np.concatenate(list(lists.values())))
    rows, ids = rows_of_ids(run, wanted, str(path))
    return {query: rows[np.isin(ids, listed)] for query, listed in lists.items()}
