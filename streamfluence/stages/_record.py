"""What every result says of itself: method, damping, bytes, coverage, sign and unit."""

from typing import Any

from streamfluence.layout import collect_stage
from streamfluence.stages._sets import partition_count
from streamfluence.store import RunStore


def record(store: RunStore, label: str) -> dict[str, Any]:
    """Return the header of one result, JSON-able."""
    spec = store.read_document(f"scores/{label}/score.json")
    manifest = store.manifest
    sketches = [plan_facts(store, checkpoint) for checkpoint in range(len(manifest["checkpoints"]))]
    first = sketches[0]
    counts = store.receipts(f"scores/{label}")[0].facts
    receipts = store.receipts(collect_stage("train", 0)).values()
    return {
        "meaning": spec["meaning"],
        "unit": spec["unit"],
        "run": store.fingerprint,
        "checkpoints": len(sketches),
        "projection": manifest["projection"]["name"],
        "curvature": f"{first['curvature']}, {manifest['curvature']['blocks']}",
        "curvature_note": note(manifest, first),
        "damping": spec["damping"] if spec["damping"] is not None else first["damping_rule"],
        "effective_dimension": round(sum(b["effective_dimension"] for b in first["blocks"]), 1),
        "directions": sum(b["width"] for b in first["blocks"]),
        "sample_examples": first["sample_examples"],
        "curvature_from": first["vectors"],
        "codec": {"name": manifest["rows"]["codec"], **first["codec"]},
        "projection_facts": {
            key: value
            for key, value in first["projection"].items()
            if not isinstance(value, list | dict)
        },
        "examples": counts["examples"],
        "non_finite_examples": counts["invalid"],
        "collected_non_finite": sum(receipt.facts["non_finite"] for receipt in receipts),
        "precision": manifest["compute"]["precision"],
        "precision_cosine": coverage_facts(store, 0)["precision_cosine"],
        "missing_partitions": spec["missing_partitions"],
        "partitions": partition_count(store, "train"),
        "excluded_parameters": manifest["model"]["exclude"],
    }


def note(manifest: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return the announced fallback of a bare loss, else None."""
    if manifest["curvature"]["name"] == facts["curvature"]:
        return None
    return "the task gives only loss(), which has no output Hessian: empirical Fisher instead of Gauss-Newton"


def coverage_facts(store: RunStore, checkpoint: int) -> dict[str, Any]:
    """Return what the coverage check of one checkpoint found."""
    receipt = store.receipts(f"sketch/{checkpoint}/coverage")[0]
    return store.read_attributes(receipt)["facts"]


def plan_facts(store: RunStore, checkpoint: int) -> dict[str, Any]:
    """Return what the sketch of one checkpoint decided."""
    receipt = store.receipts(f"sketch/{checkpoint}/plan")[0]
    return store.read_attributes(receipt)["facts"]
