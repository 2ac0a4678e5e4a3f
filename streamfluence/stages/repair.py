"""Recompute exactly what is damaged: set the damaged partitions aside, then do what is missing."""

from dataclasses import asdict
from typing import Any

from streamfluence.stages._execution import Execution, Progress
from streamfluence.stages._sets import plan_stage
from streamfluence.stages.collect import collect
from streamfluence.stages.score import rescore, stale_scores
from streamfluence.stages.sketch import sketch
from streamfluence.stages.verify import check_documents
from streamfluence.store import ANYTHING, RunStore


def repair(
    run_path: str, execution: Execution | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Verify every byte, recompute the partitions that are damaged, and remove what nothing refers to.

    Partitions that are merely missing stay missing, unless a stage that had finished lost them.
    """
    store = RunStore.open(run_path, ANYTHING)
    check_documents(store)
    problems = [asdict(problem) for problem in store.verify()]
    damaged = sorted({(p["stage"], p["partition"]) for p in problems})
    for stage, partition in damaged:
        store.discard(stage, partition)
    stages = {stage.split("/")[0] for stage, _ in damaged}
    if "sketch" in stages:
        sketch(run_path, execution, progress)
    for stage, partition in damaged:
        if stage.startswith("collect/") and store.receipts(
            plan_stage(int(stage.rsplit("/", 1)[1]))
        ):
            collect(run_path, [stage.split("/")[1]], execution, progress, partition=partition)
    labels = {stage.split("/")[1] for stage, _ in damaged if stage[:5] == "score"}
    rescore(run_path, sorted(labels | set(stale_scores(store))))
    store.collect_garbage()
    return {"run": run_path, "repaired": [{"stage": s, "partition": p} for s, p in damaged]}
