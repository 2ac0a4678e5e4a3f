"""The ground truth of one task, training set and query set: what retraining does to every query.

It is a folder of its own beside the run, because it has nothing to do with how scores are
made: runs of other bytes, dampings or methods are judged by the same retrainings. Every
retraining is one partition, so any number of processes add to it, a kill loses only those
at work, and more subsets or seeds are added later.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.errors import InputError
from streamfluence.evaluation.asked import Trainings
from streamfluence.evaluation.retraining import Choice, Retraining, Subset
from streamfluence.layout import FORMAT_VERSION, MANIFEST, receipt_path
from streamfluence.run.example_set import ExampleSet
from streamfluence.run.session import Session
from streamfluence.store import Receipt, RunStore, open_storage

HOLDS = "outcomes of retraining"
REPEAT = "repeat"  # the stage of one retraining done twice
_NAMES = {
    "task_digest": "another task, or another version of its file",
    "train": "another training set",
    "queries": "another query set",
    "measurement": "another measurement",
}


@dataclass(frozen=True)
class Truth:
    """An open ground truth.

    Attributes:
        path: Its folder or address.
        example_set: What the run calls the query set.
        count: Training examples of the whole set.
        seeds: Of the trainer, 0 to ``seeds - 1``.
    """

    store: RunStore
    path: str
    example_set: str
    count: int
    seeds: int

    def receipt(self, retraining: Retraining) -> Receipt | None:
        """Return the receipt of a retraining, None if it has not been done."""
        return self.store.receipt(*place(retraining))

    def missing(self, retrainings: Iterable[Retraining]) -> list[Retraining]:
        """Return those that have not been done, in their order; reads no receipt."""
        return [each for each in retrainings if not self.store.has(receipt_path(*place(each)))]

    @property
    def measurement(self) -> str:
        """What was measured of every query."""
        measurement: str = self.store.manifest["measurement"]
        return measurement

    def outcome(self, retraining: Retraining) -> np.ndarray:
        """Return the measurement of every query after a retraining, float64, ``(query,)``."""
        receipt = self.receipt(retraining)
        assert receipt is not None, "only what is there is asked for"
        return self.store.read(receipt, "outcome")

    def kept(self, choice: Subset, start: int, stop: int) -> np.ndarray:
        """Return which of the rows ``start`` to ``stop`` a subset kept, bool, as it was stored."""
        receipt = self.receipt(Retraining(choice, 0))
        assert receipt is not None, "only what is there is asked for"
        first = start // 8
        packed = self.store.read(receipt, "kept_bits", rows=slice(first, -(-stop // 8)))
        return np.unpackbits(packed)[start - 8 * first : stop - 8 * first].astype(bool)

    def all_seeds(self, choices: Iterable[Choice]) -> list[Retraining]:
        """Return the retrainings of every choice with every seed, choice by choice."""
        return [Retraining(choice, seed) for choice in choices for seed in range(self.seeds)]

    def outcomes(self, choices: list[Any]) -> np.ndarray:
        """Return what is there of finished choices, float64, ``(seed, choice, query)``."""
        return np.array(
            [
                [self.outcome(Retraining(choice, seed)) for choice in choices]
                for seed in range(self.seeds)
            ]
        )


def place(retraining: Retraining) -> tuple[str, int]:
    """Return stage and partition of a retraining in its ground truth."""
    choice = retraining.choice
    if isinstance(choice, Subset):
        kind = f"subsets/{choice.size}-{choice.draw_seed}"
    else:
        kind = f"without/{len(choice.rows)}"
    return f"{kind}/seed-{retraining.seed}", choice.number


def open_truth(session: Session, example_set: str, trainings: Trainings) -> Truth:
    """Open the ground truth of a run's task, training set and query set, or start it.

    Args:
        trainings: Their ``truth`` None is a folder beside the run, named by everything that its numbers
            depend on; it is started where there is none if they may ``train``.

    Raises:
        InputError: If there is none, if it belongs to another task or data set, or if the data
            changed since the run was made.
    """
    seeds = trainings.seeds
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: everything is trained with at least one seed")
    for name in ("train", example_set):
        session.refresh(name)  # checks that the data is still what the run pinned
    manifest = _manifest(session, example_set)
    path = trainings.truth or _beside(session.run.url, example_set, manifest)
    if open_storage(path).exists(MANIFEST):
        _refuse_another(RunStore.open(path, HOLDS), manifest)
    elif not trainings.train:
        raise InputError(
            f"there is no ground truth at {path}; leave out --no-train to train it, or name its folder "
            f"by --truth"
        )
    count = manifest["train"]["count"]
    return Truth(RunStore.create(path, manifest), path, example_set, count, seeds)


def _manifest(session: Session, example_set: str) -> dict[str, Any]:
    """Return what decides the outcomes; names and paths do not."""
    train, queries = session.run.example_set("train"), session.run.example_set(example_set)
    return {
        "format_version": FORMAT_VERSION,
        "holds": HOLDS,
        "task_digest": session.task.digest,
        "train": _facts(train),
        "queries": _facts(queries),
        "measurement": queries.measurement,
    }


def _facts(pinned: ExampleSet) -> dict[str, Any]:
    return {"count": pinned.count, "identities": [each.identity for each in pinned.generations]}


def _beside(url: str, example_set: str, manifest: Mapping[str, Any]) -> str:
    digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    name = f"truth-{example_set}-{digest[:8]}"
    if "://" in url:
        return f"{url.rstrip('/').rpartition('/')[0]}/{name}"
    return str(Path(url).resolve().parent / name)


def _refuse_another(store: RunStore, wanted: Mapping[str, Any]) -> None:
    differing = [words for key, words in _NAMES.items() if store.manifest[key] != wanted[key]]
    if differing:
        raise InputError(
            f"the ground truth {store.url} was trained for {' and '.join(differing)}; leave out --truth, "
            f"or give it another folder"
        )
