"""What every result says of itself: method, damping, bytes, coverage, doubts, sign and unit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamfluence.layout import TRAINING_LOSS, collect_stage
from streamfluence.run.columns import column
from streamfluence.run.damping import spread
from streamfluence.run.doubts import (
    energy_kept,
    model_doubts,
    row_doubts,
    score_doubts,
    sketch_doubts,
)
from streamfluence.run.finished import Finished, finished
from streamfluence.run.listed import lists
from streamfluence.run.rests_on import only_receipt
from streamfluence.run.sets import partition_count, plan_stage, set_facts
from streamfluence.store import Receipt, RunStore, array_names


def record(store: RunStore, label: str, scores: Finished | None = None) -> dict[str, Any]:
    """Return the header of one result, JSON-able.

    Args:
        scores: Where they were opened, and so checked, already.
    """
    scores = scores or finished(store, label)
    spec, counts = scores.spec, scores.receipt.facts
    return {
        "meaning": spec["meaning"],
        "unit": spec["unit"],
        "run": store.fingerprint,
        **_method(store, spec["damping"]),
        **_stored(store),
        **_coverage(store),
        "examples": counts["examples"],
        "non_finite_examples": counts["invalid"],
        "partitions": partition_count(store, "train"),
        "missing_partitions": spec["missing_partitions"],
        "previews": counts["previews"],
        "warnings": warnings(store, spec["missing_partitions"], [scores]),
    }


def warnings(
    store: RunStore, missing_partitions: list[int], results: Sequence[Finished]
) -> list[str]:
    """Return what makes scores of a run doubtful, one sentence each with the fix."""
    of_scores = [doubt for scores in results for doubt in score_warnings(store, scores)]
    return [
        *sketch_warnings(store),
        *row_warnings(store, missing_partitions),
        *dict.fromkeys(of_scores),
    ]


def score_warnings(store: RunStore, scores: Finished) -> list[str]:
    """Return the doubts that the scores themselves raise, where they keep the largest."""
    queries = set_facts(store, scores.spec["queries"])
    losses = queries["measurement"] in ("loss", TRAINING_LOSS)
    if not losses or "top_k.positive_rows" not in array_names(scores.receipt):
        return []
    sides = [np.abs(found["scores"][:, :1]) for found in lists(store, scores).values()]
    largest = np.nan_to_num(np.concatenate(sides, axis=1), posinf=0.0).max(axis=1, initial=0.0)
    return score_doubts(largest.tolist(), column(store, scores.spec["queries"], "loss").tolist())


def sketch_warnings(store: RunStore) -> list[str]:
    """Return the doubts that are known once the sketch is there."""
    checkpoints = range(len(store.manifest["checkpoints"]))
    plans = [plan_facts(store, checkpoint) for checkpoint in checkpoints]
    coverages = [coverage_facts(store, checkpoint) for checkpoint in checkpoints]
    names = [checkpoint["path"] for checkpoint in store.manifest["checkpoints"]]
    facts = [coverage.get("plausibility") or {} for coverage in coverages]
    return [*model_doubts(names, facts), *sketch_doubts(store.manifest, plans, coverages)]


def row_warnings(store: RunStore, missing_partitions: list[int]) -> list[str]:
    """Return the doubts that the collected rows raise."""
    receipts = _train_receipts(store)
    return row_doubts(
        {
            "non_finite": sum(receipt.facts["non_finite"] for receipt in receipts),
            "rows": sum(len(receipt.span) for receipt in receipts),
            "one_by_one": sum(receipt.facts.get("one_by_one", 0) for receipt in receipts),
            "missing": len(missing_partitions),
            "partitions": partition_count(store, "train"),
        },
        _measured(receipts)["measured_error"],
    )


def _method(store: RunStore, damping: float | None) -> dict[str, Any]:
    """Return how a score comes about, by the first checkpoint where they differ."""
    manifest, first = store.manifest, plan_facts(store, 0)
    energy = energy_kept(manifest, first)
    return {
        "models": len(manifest["checkpoints"]),
        "projection": manifest["projection"]["name"],
        "directions": first["directions"],
        "gradient_energy_kept": None if energy is None else round(energy, 4),
        "projection_facts": {
            key: value
            for key, value in first["projection"].items()
            if not isinstance(value, list | dict)
        },
        "curvature": f"{first['curvature']}, {manifest['curvature']['blocks']}",
        "curvature_note": note(manifest, first),
        "curvature_from": first["vectors"],
        "sample_examples": first["sample_examples"],
        "damping": _dampings(first) if damping is None else damping,
        "damping_rule": first["damping_rule"]
        if damping is None
        else "given when scoring" + spread(manifest["curvature"]),
        "damping_share_by_weight": round(first["damping_share_by_weight"], 3),
        "effective_dimension": round(_effective_dimension(store, first, damping), 1),
        "precision": manifest["compute"]["precision"],
        "precision_cosine": coverage_facts(store, 0)["precision_cosine"],
    }


def _dampings(plan: dict[str, Any]) -> float | dict[str, float] | None:
    """Return the damping of all blocks, or of each where they differ."""
    found = {block["name"]: block["damping"] for block in plan["blocks"]}
    if len(set(found.values())) > 1:
        return found
    return next(iter(found.values()), None)


def _effective_dimension(store: RunStore, plan: dict[str, Any], damping: float | None) -> float:
    """Return the sum of value / (value + damping) over all directions."""
    if damping is None or not plan["blocks"]:
        return sum(block["effective_dimension"] for block in plan["blocks"])
    values = store.read(only_receipt(store, plan_stage(0)), "values")
    return float((values / (values + damping)).sum())


def _stored(store: RunStore) -> dict[str, Any]:
    """Return how rows are stored, and the error that was measured."""
    codec = plan_facts(store, 0)["codec"]
    measured = _measured(_train_receipts(store))
    return {"codec": {"name": store.manifest["rows"]["codec"], **codec, **measured}}


def _measured(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return what the codec did to the first batch of every partition, relative, root mean square."""
    facts = [stored for receipt in receipts if (stored := receipt.facts["stored"])]
    rows = sum(one["rows"] for one in facts)
    return {
        "measured_error": (sum(one["error"] for one in facts) / rows) ** 0.5 if rows else None,
        "measured_energy_kept": sum(one["kept"] for one in facts) / rows if rows else None,
        "measured_rows": int(rows),
    }


def _coverage(store: RunStore) -> dict[str, Any]:
    """Return which parameters take part."""
    facts = coverage_facts(store, 0)
    return {
        "parameters_covered": facts["covered_parameters"] / facts["trainable_parameters"],
        "trainable_parameters": facts["trainable_parameters"],
        "parameters_left_out": facts["left_out"],
        "excluded_parameters": store.manifest["model"]["exclude"],
    }


def note(manifest: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return the announced fallback of a bare loss, else None."""
    if manifest["curvature"]["name"] == facts["curvature"]:
        return None
    return "the task gives only loss(), which has no output Hessian: empirical Fisher instead of Gauss-Newton"


def coverage_facts(store: RunStore, checkpoint: int) -> dict[str, Any]:
    """Return what the coverage check of one checkpoint found."""
    receipt = only_receipt(store, f"sketch/{checkpoint}/coverage")
    return store.read_attributes(receipt)["facts"]


def plan_facts(store: RunStore, checkpoint: int) -> dict[str, Any]:
    """Return what the sketch of one checkpoint decided."""
    receipt = only_receipt(store, plan_stage(checkpoint))
    return store.read_attributes(receipt)["facts"]


def _train_receipts(store: RunStore) -> list[Receipt]:
    """Return the receipts of the training rows at every checkpoint."""
    return [
        receipt
        for checkpoint in range(len(store.manifest["checkpoints"]))
        for receipt in store.receipts(collect_stage("train", checkpoint)).values()
    ]
