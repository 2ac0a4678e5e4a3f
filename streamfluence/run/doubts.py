"""What makes the scores of a run doubtful, each as one sentence with its fix.

Pure functions of what the sketch and the receipts recorded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from streamfluence.run.manifest import Method

# examples x probes a direction; measured on a small MLP (digits): one probe each of 1,437
# examples costs .04 of LDS at 512 directions, eight cost .007.
VECTORS_A_DIRECTION = 20
# Rank agreement with unprojected Gauss-Newton by layer, measured by `evaluate fidelity` on the
# digits example (160 examples, damping 1e-3, rows in float32) for widths 1024 to 64:
#   effective dimension / width   .18   .23   .33   .41   .54   .76   .90
#   gradient energy kept         .997  .996  .992  .988  .977  .943
#   Spearman                      .98   .96   .91   .88   .77   .56   .46
MOST_OF_THE_WIDTH = 0.4
LEAST_ENERGY = 0.95
# Of whitened loss gradients, in the directions of the projection `principal`; on the code
# transformer in float32, LDS over that of all 1,024 components of the training examples: .93 where .81
# of theirs is kept, .84 where .59 is; fitted on other texts .88 where .42 is, .80 where .33 is.
LEAST_WHITENED = 0.4
# Same net as the widths above, 1024 directions, against joint Gauss-Newton: float32 .71; an error of
# .23 (128 bytes) leaves .63, .48 (64 bytes) .54, .76 (32 bytes) .43.
LARGEST_ERROR = 0.5
MOST = 0.5  # of the examples, or of a layer's channels
LARGE_SCORES = 0.5  # share of the queries
LEAST_LOSS = 1e-3  # of a query; a smaller one may well change by more than itself

Facts = Mapping[str, Any]


def energy_kept(decision: Facts, examples: int) -> float | None:
    """Return the share of the training set's gradient energy in the directions; None if not known.

    Under the projection ``principal`` it is of whitened gradients, and where the directions were not
    made from all of the training set, an estimate for the others.
    """
    found = decision["projection"]
    whole = found.get("components_of", 0) >= examples
    kept: float | None = found.get("kept")
    return kept if whole else found.get("kept_beyond", kept)


def sketch_doubts(
    method: Method, examples: int, decisions: Sequence[Facts], coverages: Sequence[Facts]
) -> list[str]:
    """Return the doubts that the sketch alone justifies; the worst checkpoint speaks.

    Args:
        decisions: What each checkpoint's sketch decided.
        coverages: What each checkpoint's coverage check found.
    """
    found: list[str | None] = [*curvature_doubts(decisions[0])]
    found += vector_doubts(examples, decisions)
    shares = [energy_kept(decision, examples) for decision in decisions]
    kept = min(1.0 if share is None else share for share in shares)
    if method.projection.name == "principal":
        found.append(_whitened(kept))  # which says what is left out, as the width does for pairs
    else:
        found += (_width(max(map(_used_width, decisions, coverages))), _energy(kept))
    return [sentence for sentence in found if sentence]


def curvature_doubts(decision: Facts) -> list[str]:
    """Return the doubts about damping and kind of a curvature, whatever is made of it."""
    return [sentence for sentence in (_damping(decision), _fallback(decision)) if sentence]


def vector_doubts(examples: int, decisions: Sequence[Facts]) -> list[str]:
    """Return the doubt that a curvature of few vectors justifies; the worst checkpoint speaks."""
    found = _vectors(examples, min(decisions, key=_vectors_a_direction))
    return [found] if found else []


def row_doubts(counts: Mapping[str, int], error: float | None) -> list[str]:
    """Return the doubts that collected rows raise.

    Args:
        counts: ``non_finite`` rows, ``rows`` of all checkpoints, ``missing`` and all ``partitions``,
            and how many batches were run ``one_by_one`` where that was not planned.
        error: Measured relative error of the stored coordinates; None when nothing was stored.
    """
    found = []
    if counts["non_finite"]:
        found.append(
            f"{counts['non_finite']:,} of {counts['rows']:,} training rows were NaN or infinite and "
            f"count nowhere; find them by `flags` in the rows, and repair the data or the precision"
        )
    if counts["one_by_one"]:
        found.append(
            f"{counts['one_by_one']:,} batches were run one example at a time, because gradients taken of "
            "the whole batch were not those of its examples: the model sorts or regroups them, uses a "
            "weight outside its module, mixes them in its backward pass, or computes a batch of one "
            "otherwise. These rows are exact, and slow to make; where the examples of a batch keep "
            "their places and know nothing of each other, they are fast"
        )
    if counts["missing"]:
        found.append(
            f"{counts['missing']:,} of {counts['partitions']:,} partitions of training rows are "
            f"missing and count nowhere; run `streamfluence collect`, then score under another name"
        )
    if error is not None and error > LARGEST_ERROR:
        found.append(
            f"stored rows are {error:.0%} off what was measured, because they have few bytes; raise "
            f"rows.bytes, and see `streamfluence evaluate fidelity` for what it buys"
        )
    return found


def model_doubts(names: Sequence[str], facts: Sequence[Facts]) -> list[str]:
    """Return the doubts that a model is what was trained on the data; the worst checkpoint speaks.

    Args:
        names: Of the checkpoints.
        facts: What forward passes over a sample found at each; see ``plausibility``.
    """
    return [doubt for doubt in (_losses(names, facts), _statistics(names, facts)) if doubt]


def score_doubts(largest: Sequence[float], losses: Sequence[float]) -> list[str]:
    """Return the doubt that scores of single examples raise by their size.

    Args:
        largest: Of every query, the largest magnitude of any score.
        losses: Of every query, its loss.
    """
    pairs = zip(largest, losses, strict=True)
    told = [(score, loss) for score, loss in pairs if score >= 0 and loss >= LEAST_LOSS]
    over = sum(score > loss for score, loss in told)
    if not told or over <= LARGE_SCORES * len(told):
        return []
    return [
        f"for {over:,} of {len(told):,} queries one training example's score is larger than the query's "
        f"whole loss, more than one example can change; raise the damping (`score --damping X`, or "
        f"curvature.weight_decay, learning_rate and steps as in training)"
    ]


def _losses(names: Sequence[str], facts: Sequence[Facts]) -> str | None:
    worst = _worst("losses", names, facts)
    if worst is None or worst["mean"] <= worst["guess"]:
        return None
    return (
        f"{worst['share']:.0%} of {worst['examples']:,} sampled training examples have a larger loss at "
        f"{worst['name']} than a guess without inputs (mean {worst['mean']:.3g}, guess "
        f"{worst['guess']:.3g}), so the model is not what was trained on this data; check its weights, "
        f"that forward prepares inputs as training did, and the numbering of the targets"
    )


def _statistics(names: Sequence[str], facts: Sequence[Facts]) -> str | None:
    worst = _worst("batch_norm", names, facts)
    if worst is None:
        return None
    return (
        f"the BatchNorm statistics of {worst['layer']} at {worst['name']} are far from those of the data "
        f"in {worst['share']:.0%} of its channels; prepare inputs as training did, and load running_mean "
        f"and running_var with the weights"
    )


def _worst(what: str, names: Sequence[str], facts: Sequence[Facts]) -> dict[str, Any] | None:
    """Return the fact of the checkpoint with the largest share, None if that is not most."""
    found = [
        {**one[what], "name": name}
        for one, name in zip(facts, names, strict=True)
        if one.get(what) and one[what]["share"] > MOST
    ]
    return max(found, key=lambda one: one["share"], default=None)


def _damping(decision: Facts) -> str | None:
    if "mean eigenvalue" not in decision["damping_rule"]:
        return None
    return (
        f"the damping is a guess ({decision['damping_rule']}); give curvature.weight_decay, or "
        f"learning_rate and steps of training that stopped early, or compare `score --damping X`"
    )


def _fallback(decision: Facts) -> str | None:
    if not decision["without_outputs"]:
        return None
    return (
        "the task gives only loss(), which has no output Hessian, so the curvature is the empirical "
        "Fisher, which predicts retraining less well; define likelihood and forward()"
    )


def _vectors_a_direction(decision: Facts) -> float:
    return float(
        decision["sample_examples"]
        * decision["vectors_an_example"]
        / max(decision["directions"], 1)
    )


def _vectors(examples: int, decision: Facts) -> str | None:
    """Probes are noisy; exact columns and loss gradients of a sample must at least span the width.

    A curvature that joins no directions knows each from all vectors.
    """
    probes = "probes" in decision["vectors"]
    whole = decision["sample_examples"] >= examples
    wanted = VECTORS_A_DIRECTION if probes else (0 if whole else 1)
    if (
        not decision["couples"]
        or not decision["blocks"]
        or _vectors_a_direction(decision) >= wanted
    ):
        return None
    made = decision["sample_examples"] * decision["vectors_an_example"]
    fix = "raise sketch.examples or sketch.probes" if probes else "raise sketch.examples"
    return (
        f"the curvature of {decision['directions']:,} directions comes from {made:,} vectors "
        f"({decision['sample_examples']:,} examples, {decision['vectors']}), fewer than {wanted} a "
        f"direction; {fix}, or lower projection.width"
    )


def _used_width(decision: Facts, coverage: Facts) -> float:
    """Return effective dimension over width of the blocks that were cut short; 0 if none was."""
    sizes = {block["name"]: block["size"] for block in coverage["blocks"]}
    everything = sum(sizes.values())  # a part that is no layer lies over all of them
    cut = [b for b in decision["blocks"] if b["width"] < sizes.get(b["name"], everything)]
    width = sum(block["width"] for block in cut)
    return sum(block["effective_dimension"] for block in cut) / width if width else 0.0


def _width(used: float) -> str | None:
    if used <= MOST_OF_THE_WIDTH:
        return None
    return (
        f"the effective dimension is {used:.0%} of the directions kept, so directions that matter "
        f"were left out; raise projection.width and rows.bytes, or the damping"
    )


def _whitened(kept: float) -> str | None:
    if kept >= LEAST_WHITENED:
        return None
    return (
        f"the directions kept hold only {kept:.0%} of whitened loss gradients, which spread over more; "
        f"raise sketch.examples and projection.width (and rows.bytes)"
    )


def _energy(kept: float) -> str | None:
    if kept >= LEAST_ENERGY:
        return None
    return (
        f"the directions kept hold only {kept:.0%} of the gradient energy; raise projection.width "
        f"(and rows.bytes)"
    )
