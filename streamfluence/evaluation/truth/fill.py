"""Train what is missing of a ground truth, after a look at whether the trainer can give one."""

from collections.abc import Sequence
from typing import Any

from streamfluence.errors import InputError
from streamfluence.evaluation.retraining import Choice, Retraining, ignored
from streamfluence.evaluation.truth import units as work
from streamfluence.evaluation.truth.kept import REPEAT, Truth
from streamfluence.execution import Execution, Progress, run_all
from streamfluence.run.session import Session

_REFUSALS = {
    "seed": "gives identical outcomes for seeds 0 and 1, so it ignores its seed: seed everything it draws "
    "at random by it, or give --seeds 1 if nothing in training is random",
    "subset": "gives identical outcomes on different examples, so it ignores its indices: it must train on "
    "those rows of the training set alone (and the measurement must depend on the model)",
}


def fill(
    truth: Truth,
    session: Session,
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
    session.task.require_train()
    everything = truth.all_seeds(choices)
    missing = truth.missing(everything if worker is None else everything[worker[0] :: worker[1]])
    first = _first(choices, truth.seeds)
    rounds = [
        [(each, False) for each in missing if each in first],
        [(each, True) for each in _repeats(truth, everything[0], worker)]
        + [(each, False) for each in missing if each not in first],
    ]
    check(truth, session, choices)
    if total := sum(map(len, rounds)):
        where = (session.run.url, execution.resolved_device(), truth.example_set, truth.path)
        with execution.open(total, session.run.method.batches.threads) as executor:
            progress.start("retrain", total, "retrainings")
            for tasks in rounds:
                run_all(
                    *(executor, work.retrain, [(*where, *task) for task in tasks]),
                    lambda *_: progress.advance(1),
                )
                check(truth, session, choices)
            progress.finish()
    for sentence in warnings(truth, session):
        progress.message(f"warning: {sentence}")
    return {
        "retrained": len(missing),
        "retrainings": len(everything) - len(truth.missing(everything)),
        "of": len(everything),
    }


def check(truth: Truth, session: Session, choices: Sequence[Choice]) -> None:
    """Refuse a trainer whose first outcomes show that it ignores its seed or its indices."""
    first = _first(choices, truth.seeds)
    there = [each for each in first if truth.receipt(each) is not None]
    found = ignored({each: truth.outcome(each) for each in there})
    if found is not None:
        raise InputError(f"{session.task.name}: train() {_REFUSALS[found]}")


def warnings(truth: Truth, session: Session) -> list[str]:
    """Return what makes the ground truth doubtful: a retraining done twice came out differently."""
    receipt = truth.store.receipt(REPEAT, 0)
    difference = 0.0 if receipt is None else receipt.facts["largest_difference"]
    if not difference:
        return []
    return [
        f"{session.task.name}: train() on the same examples with the same seed gave outcomes up to "
        f"{difference:.2g} apart; seed everything it draws, or other numbers come out next time"
    ]


def _first(choices: Sequence[Choice], seeds: int) -> list[Retraining]:
    """Return the retrainings that are compared before all others."""
    two_seeds = [Retraining(choices[0], seed) for seed in range(min(seeds, 2))]
    return [*two_seeds, *(Retraining(choice, 0) for choice in choices[1:3])]


def _repeats(
    truth: Truth, retraining: Retraining, worker: tuple[int, int] | None
) -> list[Retraining]:
    """Return what is to be done twice: the first retraining of a new ground truth, by one worker."""
    done = truth.store.receipt(REPEAT, 0) is not None
    return [] if done or (worker is not None and worker[0] > 0) else [retraining]
