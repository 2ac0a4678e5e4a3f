"""What every result says of itself: method, damping, bytes, coverage, doubts, sign and unit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamfluence.columns import LOSS
from streamfluence.layout import TRAINING_LOSS, decision_stage, sketch_stage
from streamfluence.registry import member
from streamfluence.run.columns import column
from streamfluence.run.decision import load_preconditioner
from streamfluence.run.doubts import (
    curvature_doubts,
    energy_kept,
    model_doubts,
    row_doubts,
    score_doubts,
    sketch_doubts,
    vector_doubts,
)
from streamfluence.run.feature import feature_of
from streamfluence.run.finished import Finished, finished
from streamfluence.run.listed import lists
from streamfluence.run.manifest import Method
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepared_receipt
from streamfluence.run.rests_on import only_receipt
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.source import DIRECTIONS, SOURCE, of_rows, scan_of, source_name
from streamfluence.store import Receipt, array_names


def record(run: OpenRun, label: str, scores: Finished | None = None) -> dict[str, Any]:
    """Return the header of one result, JSON-able.

    Args:
        scores: Where they were opened, and so checked, already.
    """
    scores = scores or finished(run, label)
    spec, counts = scores.spec, scores.receipt.facts
    return {
        "meaning": spec["meaning"],
        "unit": spec["unit"],
        "run": run.fingerprint,
        "training_set": run.train.seal,
        "feature": run.method.feature.name,
        "feature_options": dict(run.method.feature.options),
        "scale": spec["scale"],
        "source": source_name(spec),
        **_method(run, spec["damping"]),
        **(_stored(run) if of_rows(spec) else _without_rows(run, label, spec)),
        **_coverage(run),
        "examples": counts["examples"],
        "non_finite_examples": counts["invalid"],
        "partitions": run.train.partitions,
        "missing_partitions": spec["missing_partitions"],
        "previews": counts["previews"],
        "warnings": warnings(run, spec["missing_partitions"], [scores]),
    }


def warnings(run: OpenRun, missing_partitions: list[int], results: Sequence[Finished]) -> list[str]:
    """Return what makes scores of a run doubtful, one sentence each with the fix."""
    of_scores = [doubt for scores in results for doubt in score_warnings(run, scores)]
    with_rows = not results or any(of_rows(scores.spec) for scores in results)
    damped = with_rows or not all(scan_of(scores.spec)[1] for scores in results)
    return [
        *sketch_warnings(run, with_rows, damped),
        *(row_warnings(run, missing_partitions) if with_rows else []),
        *dict.fromkeys(of_scores),
    ]


def score_warnings(run: OpenRun, scores: Finished) -> list[str]:
    """Return the doubts that the scores themselves raise, where they keep the largest."""
    losses = run.example_set(scores.spec["queries"]).measurement in ("loss", TRAINING_LOSS)
    if not (losses and predicts(run, scores)) or "top_k.positive_rows" not in array_names(
        scores.receipt
    ):
        return []
    sides = [np.abs(found["scores"][:, :1]) for found in lists(run, scores).values()]
    largest = np.nan_to_num(np.concatenate(sides, axis=1), posinf=0.0).max(axis=1, initial=0.0)
    return score_doubts(largest.tolist(), _query_losses(run, scores).tolist())


def _query_losses(run: OpenRun, scores: Finished) -> np.ndarray:
    if of_rows(scores.spec):
        return column(StoredRows(run, scores.spec["queries"], 0), LOSS)
    return run.read(prepared_receipt(run, scores.label), f"{DIRECTIONS}.value")


def predicts(run: OpenRun, scores: Finished) -> bool:
    """Return whether a score is a predicted change of the query, in its unit."""
    kept = member("scales", scores.spec["scale"])().keeps_prediction
    return kept and feature_of(run.method).predicts


def sketch_warnings(run: OpenRun, with_rows: bool = True, damped: bool = True) -> list[str]:
    """Return the doubts that are known once the sketch is there.

    Args:
        with_rows: Whether rows are made in its directions; else it gives a damping and no more.
        damped: Whether that is used.
    """
    checkpoints = run.checkpoints
    decisions = [decision_facts(run, checkpoint) for checkpoint in checkpoints]
    coverages = [coverage_facts(run, checkpoint) for checkpoint in checkpoints]
    names = run.method.checkpoint_names
    facts = [coverage.get("plausibility") or {} for coverage in coverages]
    if not feature_of(run.method).gradients:
        # Neither a damping nor the losses say anything of a similarity, but wrong inputs spoil it, too.
        return [
            *model_doubts(names, [{**fact, "losses": None} for fact in facts]),
            *vector_doubts(run.train.count, decisions),
        ]
    if not with_rows:
        damping = curvature_doubts(decisions[0]) if damped else []
        return [*model_doubts(names, facts), *damping]
    return [
        *model_doubts(names, facts),
        *sketch_doubts(run.method, run.train.count, decisions, coverages),
    ]


def row_warnings(run: OpenRun, missing_partitions: list[int]) -> list[str]:
    """Return the doubts that the collected rows raise."""
    receipts = _train_receipts(run)
    return row_doubts(
        {
            "non_finite": sum(receipt.facts["non_finite"] for receipt in receipts),
            "rows": sum(len(receipt.span) for receipt in receipts),
            "one_by_one": sum(receipt.facts.get("one_by_one", 0) for receipt in receipts),
            "missing": len(missing_partitions),
            "partitions": run.train.partitions,
        },
        _measured(receipts)["measured_error"],
    )


def _method(run: OpenRun, damping: float | None) -> dict[str, Any]:
    """Return how a score comes about, by the first checkpoint where they differ."""
    method, first = run.method, decision_facts(run, 0)
    return {
        "models": len(run.checkpoints),
        "projection": method.projection.name,
        "directions": first["directions"],
        **_energy(run, first),
        "projection_facts": {
            key: value
            for key, value in first["projection"].items()
            if not isinstance(value, list | dict)
        },
        "curvature": f"{first['curvature']}, {method.curvature.blocks}",
        "curvature_note": note(method, first),
        "curvature_from": first["vectors"],
        "sample_examples": first["sample_examples"],
        "damping": _dampings(first) if damping is None else damping,
        "damping_rule": first["damping_rule"]
        if damping is None
        else "given when scoring" + method.curvature.spread,
        "damping_share_by_weight": round(first["damping_share_by_weight"], 3),
        "effective_dimension": round(_effective_dimension(run, first, damping), 1),
        "precision": method.batches.precision,
        "precision_cosine": coverage_facts(run, 0)["precision_cosine"],
    }


def _energy(run: OpenRun, decision: dict[str, Any]) -> dict[str, float | None]:
    """Return the share of gradients that the directions hold; nothing of what is no gradient."""
    if not feature_of(run.method).gradients:
        return {}
    energy = energy_kept(decision, run.train.count)
    return {"gradient_energy_kept": None if energy is None else round(energy, 4)}


def _dampings(decision: dict[str, Any]) -> float | dict[str, float] | None:
    """Return the damping of all blocks, or of each where they differ."""
    found = {block["name"]: block["damping"] for block in decision["blocks"]}
    if len(set(found.values())) > 1:
        return found
    return next(iter(found.values()), None)


def _effective_dimension(run: OpenRun, decision: dict[str, Any], damping: float | None) -> float:
    """Return the sum of value / (value + damping) over all directions."""
    if damping is None or not decision["blocks"]:
        return float(sum(block["effective_dimension"] for block in decision["blocks"]))
    return sum(load_preconditioner(run, 0).effective_dimension(damping))


def _stored(run: OpenRun) -> dict[str, Any]:
    """Return how rows are stored, and the error that was measured."""
    codec = decision_facts(run, 0)["codec"]
    measured = _measured(_train_receipts(run))
    return {"codec": {"name": run.method.rows.codec, **codec, **measured}}


def _without_rows(run: OpenRun, label: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what takes the place of a projection, and of a curvature where the source has its own."""
    facts = prepared_receipt(run, label).facts
    if "record" not in facts:
        return _streamed(run, facts, spec[SOURCE])
    codec = {"name": "none: no row is stored"}
    return {"projection_facts": {}, "codec": codec, "precision": "float32", **facts["record"]}


def _streamed(run: OpenRun, facts: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is so where gradients are multiplied whole."""
    first = decision_facts(run, 0)
    solved = first["curvature"] != "identity"
    return {
        "projection": "none: gradients as they are",
        "projection_facts": {},
        "directions": coverage_facts(run, 0)["covered_parameters"],
        "gradient_energy_kept": 1.0,
        "curvature_from": "products with the curvature of the sample" if solved else None,
        "precision": "float32",
        "solver": source["solver"] if solved else None,
        "solver_steps": max(facts["steps"]) if solved else None,
        "solver_residual": max(facts["residual"]) if solved else None,
        "one_by_one": any(facts["alone"]),
        "codec": {"name": "none: no row is stored"},
    }


def _measured(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return what the codec did to the first batch of every partition, relative, root mean square."""
    facts = [stored for receipt in receipts if (stored := receipt.facts["stored"])]
    rows = sum(one["rows"] for one in facts)
    return {
        "measured_error": (sum(one["error"] for one in facts) / rows) ** 0.5 if rows else None,
        "measured_energy_kept": sum(one["kept"] for one in facts) / rows if rows else None,
        "measured_rows": int(rows),
    }


def _coverage(run: OpenRun) -> dict[str, Any]:
    """Return which parameters take part; nothing where no gradient is taken."""
    if not feature_of(run.method).gradients:
        return {}
    facts = coverage_facts(run, 0)
    return {
        "parameters_covered": facts["covered_parameters"] / facts["trainable_parameters"],
        "trainable_parameters": facts["trainable_parameters"],
        "parameters_left_out": facts["left_out"],
        "excluded_parameters": list(run.method.model.exclude),
    }


def note(method: Method, facts: dict[str, Any]) -> str | None:
    """Return what a curvature is that is not quite what was asked for, else None."""
    if facts["without_outputs"]:
        return (
            "the task gives only loss(), which has no output Hessian: empirical Fisher instead of "
            "Gauss-Newton"
        )
    if method.joint and facts["blocks"] and not facts["couples"]:
        return "a diagonal joins no directions: over all layers it is the same matrix as layer by layer"
    return None


def coverage_facts(run: OpenRun, checkpoint: int) -> dict[str, Any]:
    """Return what the coverage check of one checkpoint found."""
    receipt = only_receipt(run, sketch_stage(checkpoint, "coverage"))
    facts: dict[str, Any] = run.read_attributes(receipt)["facts"]
    return facts


def decision_facts(run: OpenRun, checkpoint: int) -> dict[str, Any]:
    """Return what the sketch of one checkpoint decided."""
    receipt = only_receipt(run, decision_stage(checkpoint))
    facts: dict[str, Any] = run.read_attributes(receipt)["facts"]
    return facts


def _train_receipts(run: OpenRun) -> list[Receipt]:
    """Return the receipts of the training rows at every checkpoint."""
    return [receipt for rows in stored_rows(run, "train") for receipt in rows.present().values()]
