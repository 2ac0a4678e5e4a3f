"""Train what is missing of a ground truth, after a look at whether the trainer can give one."""

from collections.abc import Sequence
from typing import Any

from streamfluence.errors import InputError
from streamfluence.evaluation.retraining import Choice, Retraining, ignored
from streamfluence.stages import _truth_tasks as work
from streamfluence.stages._execution import Execution, Progress, run_all
from streamfluence.stages._session import Session
from streamfluence.stages._truth import REPEAT, Truth

_REFUSALS = {
    "seed": "gives identical outcomes for seeds 0 and 1, so it ignores its seed: seed everything it draws "
    "at random by it, or give --seeds 1 if nothing in training is random",
    "subset": "gives identical outcomes on different examples, so it ignores its indices: it must train on "
    "those rows of the training set alone (and the measurement must depend on the model)",
}


def fill(
    truth: Truth,
    opened: Session,
    run_path: str,
    choices: Sequence[Choice],
    execution: Execution,
    progress: Progress,
    worker: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Train every choice with every seed, as far as it is missing; return counts.

    The first few are trained alone and compared, so that a trainer that ignores its seed or
    its indices is found before the long work.

    Args:
        choices: The whole training set, if it is among them, comes first.
        worker: ``(i, N)``: only the retrainings whose number is i modulo N.

    Raises:
        InputError: If the task cannot be trained again, or ignores its seed or its indices.
    """
    opened.task.require_train()
    everything = truth.all_seeds(choices)
    mine = everything if worker is None else everything[worker[0] :: worker[1]]
    first = [each for each in _first(choices, truth.seeds) if each in set(mine)]
    missing = truth.missing(mine)
    repeats = [] if worker is not None and worker[0] > 0 else _repeats(truth, everything[0])
    rounds = [[each for each in missing if each in first], [e for e in missing if e not in first]]
    if missing or repeats:
        threads = opened.manifest["compute"]["threads"]
        with execution.open(len(missing) + len(repeats), threads) as executor:
            progress.start("retrain", len(missing) + len(repeats), "retrainings")
            for number, retrainings in enumerate(rounds):
                again = repeats if number == 1 else []
                tasks = [
                    (run_path, execution.resolved_device(), truth.example_set, truth.path, *each)
                    for each in [*((e, True) for e in again), *((e, False) for e in retrainings)]
                ]
                run_all(executor, work.retrain, tasks, lambda *_: progress.advance(1))
                check(truth, opened, choices)
            progress.finish()
        for sentence in warnings(truth, opened):
            progress.message(f"warning: {sentence}")
    else:
        check(truth, opened, choices)
    left = truth.missing(everything)
    return {
        "retrained": len(missing),
        "retrainings": len(everything) - len(left),
        "of": len(everything),
    }


def check(truth: Truth, opened: Session, choices: Sequence[Choice]) -> None:
    """Refuse a trainer whose first outcomes show that it ignores its seed or its indices."""
    first = _first(choices, truth.seeds)
    there = [each for each in first if truth.receipt(each) is not None]
    found = ignored({each: truth.outcome(each) for each in there})
    if found is not None:
        raise InputError(f"{opened.task.name}: train() {_REFUSALS[found]}")


def warnings(truth: Truth, opened: Session) -> list[str]:
    """Return what makes the ground truth doubtful: a retraining done twice came out differently."""
    receipt = truth.store.receipt(REPEAT, 0)
    difference = 0.0 if receipt is None else receipt.facts["largest_difference"]
    if not difference:
        return []
    return [
        f"{opened.task.name}: train() on the same examples with the same seed gave outcomes up to "
        f"{difference:.2g} apart; seed everything it draws, or other numbers come out next time"
    ]


def _first(choices: Sequence[Choice], seeds: int) -> list[Retraining]:
    """Return the retrainings that are compared before all others."""
    two_seeds = [Retraining(choices[0], seed) for seed in range(min(seeds, 2))]
    return [*two_seeds, *(Retraining(choice, 0) for choice in choices[1:3])]


def _repeats(truth: Truth, retraining: Retraining) -> list[Retraining]:
    """Return what is to be done twice: the first retraining of a new ground truth."""
    return [] if truth.store.receipt(REPEAT, 0) is not None else [retraining]
