"""The mutants: one wrong place each, and the narrowest test file that must see it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of the package.

    Attributes:
        name: What is wrong.
        module: File below ``streamfluence/``.
        before, after: Text that is there once, and what takes its place.
        tests: The narrowest file of tests that must fail.
        chosen: pytest's ``-k``, where the whole file takes long.
    """

    name: str
    module: str
    before: str
    after: str
    tests: str
    chosen: str = ""


MUTANTS = (
    # --- curvature, damping, directions
    Mutant(
        "the curvature is a sum and not a mean",
        "curvature/_outer_products.py",
        "symmetric_eigen(gram / examples)",
        "symmetric_eigen(gram)",
        "test_curvature.py",
    ),
    Mutant(
        "probes weigh one each",
        "features/gradient.py",
        "weight = 1.0 / wanted",
        "weight = 1.0",
        "test_features.py",
    ),
    Mutant(
        "a probe's root is not weighted",
        "likelihoods/base.py",
        "roots = self._weights(wide, targets, weights).sqrt()",
        "roots = self._weights(wide, targets, weights)",
        "test_likelihood.py",
    ),
    Mutant(
        "a softmax has no outer product",
        "likelihoods/categorical.py",
        "return root * vector - p * (root * vector).sum(-1, keepdim=True)",
        "return root * vector",
        "test_likelihood.py",
    ),
    Mutant(
        "early stopping counts half jointly",
        "sketching/damping.py",
        '"joint": 2.0',
        '"joint": 1.0',
        "test_damping.py",
    ),
    Mutant(
        "momentum is forgotten",
        "sketching/damping.py",
        "return 1 - told.momentum",
        "return 1.0",
        "test_damping.py",
    ),
    Mutant(
        "Adam's batch size is forgotten",
        "sketching/damping.py",
        "(mean_square / told.batch_size) ** 0.5",
        "mean_square**0.5",
        "test_damping.py",
    ),
    Mutant(
        "scales of rows and columns change places",
        "features/_mean_squares.py",
        'factors["left"].append(rows.rsqrt().flatten())\n'
        '            factors["right"].append(columns.rsqrt().flatten())',
        'factors["left"].append(columns.rsqrt().flatten())\n'
        '            factors["right"].append(rows.rsqrt().flatten())',
        "test_scales.py",
    ),
    Mutant(
        "the mean square forgets the number of examples",
        "features/_mean_squares.py",
        'float(state["norm"].sum()) / examples / sum(',
        'float(state["norm"].sum()) / sum(',
        "test_scales.py",
    ),
    # --- rows
    Mutant(
        "queries are stored in the coordinates of rows",
        "collecting/units.py",
        "columns.add({ROWS: decision.preconditioner.for_queries(whitened), **facts})",
        "columns.add({ROWS: decision.preconditioner.for_rows(whitened), **facts})",
        "test_end_to_end.py",
    ),
    Mutant(
        "a row that is not finite is no longer flagged",
        "collecting/units.py",
        "(~finite).to(torch.uint8) * QUARANTINED",
        "torch.zeros_like(finite, dtype=torch.uint8)",
        "test_bad_input.py",
    ),
    Mutant(
        "self-influence forgets the square",
        "collecting/units.py",
        "self_influence = whitened.square().sum(1)",
        "self_influence = whitened.abs().sum(1)",
        "test_end_to_end.py",
    ),
    Mutant(
        "the norm of a gradient is its square",
        "collecting/units.py",
        "GRAD_NORM: rows.square().sum(1).sqrt(),",
        "GRAD_NORM: rows.square().sum(1),",
        "test_end_to_end.py",
    ),
    # --- scores
    Mutant(
        "1/n is dropped from a score",
        "run/feature.py",
        "return [weight / shared for weight in method.weights]",
        "return [weight for weight in method.weights]",
        "test_end_to_end.py",
    ),
    Mutant(
        "every checkpoint has the weight of the first",
        "run/feature.py",
        "return [weight / shared for weight in method.weights]",
        "return [method.weights[0] / shared for _ in method.weights]",
        "test_end_to_end.py",
    ),
    Mutant(
        "rows of one checkpoint meet queries of another",
        "scoring/queries.py",
        "found, damping = query_rows(rows, tile), queries.damping",
        "found, damping = query_rows(StoredRows(run, rows.example_set, 0), tile), queries.damping",
        "test_end_to_end.py",
    ),
    Mutant(
        "another damping is taken for the same",
        "preconditioners/_spectrum.py",
        "ratio = (self.values + self.damping) / (self.values + damping)",
        "ratio = (self.values + damping) / (self.values + self.damping)",
        "test_preconditioners.py",
    ),
    Mutant(
        "a tile of queries begins one too early",
        "scoring/queries.py",
        "slice(max(low - receipt.start, 0), high - receipt.start)",
        "slice(max(low - receipt.start - 1, 0), high - receipt.start - 1)",
        "test_rows_and_queries.py",
    ),
    # --- what is read out
    Mutant(
        "the mean over queries is a sum",
        "readouts/aggregate.py",
        "mean = total / max(block.scores.shape[1], 1)",
        "mean = total",
        "test_readouts.py",
    ),
    Mutant(
        "examples that hurt are sorted as those that help",
        "readouts/top_k.py",
        "key = np.where(block.valid, sign * scores, -np.inf)",
        "key = np.where(block.valid, scores, -np.inf)",
        "test_readouts.py",
    ),
    Mutant(
        "a group's sum counts rows that are not finite",
        "readouts/aggregate.py",
        "groups, place = np.unique(block.group[block.valid], return_inverse=True)\n"
        "        scores = torch.from_numpy(block.scores[block.valid].astype(np.float64))",
        "groups, place = np.unique(block.group, return_inverse=True)\n"
        "        scores = torch.from_numpy(block.scores.astype(np.float64))",
        "test_readouts.py",
    ),
    Mutant(
        "a column is good where any checkpoint is",
        "run/columns.py",
        "(flags == 0).all(axis=0)",
        "(flags == 0).any(axis=0)",
        "test_columns.py",
    ),
    # --- judgements
    Mutant(
        "a subset's effect has the wrong sign",
        "evaluation/lds.py",
        "return -(np.asarray(masks",
        "return (np.asarray(masks",
        "test_evaluation_lds.py",
    ),
    Mutant(
        "ties have the first rank",
        "evaluation/lds.py",
        "(first + last) / 2 + 1",
        "first + 1",
        "test_evaluation_lds.py",
    ),
    Mutant(
        "1/n is dropped in a judged column",
        "evaluation/truth/scores.py",
        "factors = np.asarray(checkpoint_factors(self.run.method, self.count))",
        "factors = np.asarray(checkpoint_factors(self.run.method, 1))",
        "test_truth_scores.py",
    ),
    Mutant(
        "sanity compares in the coordinates of whitened rows",
        "stages/evaluate/sanity.py",
        "wanted = decision.codec.query(decision.preconditioner.for_rows(rows))",
        "wanted = decision.codec.query(rows)",
        "test_evaluate_sanity.py",
    ),
    Mutant(
        "outcomes of retraining change places",
        "evaluation/truth/kept.py",
        'return f"{kind}/seed-{retraining.seed}", choice.number',
        'return f"{kind}/seed-0", choice.number',
        "test_evaluate_retraining.py",
    ),
    # --- what is refused
    Mutant(
        "the disk check counts no rows before the sketch",
        "stages/run.py",
        "return run.method.rows.bytes if of_train else 0",
        "return 0",
        "test_first_run.py",
    ),
    Mutant(
        "a lost partition is not missed",
        "run/rows.py",
        "self.refuse_missing([partition for partition in wanted if partition not in there])",
        "self.refuse_missing([])",
        "test_results_chain.py",
    ),
    Mutant(
        "rows of another sketch are taken",
        "run/rests_on.py",
        'coordinates = [decision.facts.get("scales"), scales_digest(run, checkpoint)]\n'
        "    return document_digest([content_digest([decision]), *coordinates])",
        "return document_digest([checkpoint])",
        "test_results_chain.py",
    ),
    Mutant(
        "the proof sees nothing",
        "capture/_proof.py",
        "        if fault is not None:\n            refuse_random(",
        "        fault = None\n        if fault is not None:\n            refuse_random(",
        "test_capture_order.py",
    ),
    Mutant(
        "the signs of probes are all one",
        "linalg.py",
        "return 1.0 - 2.0 * flipped.to(torch.float32)",
        "return 1.0 - 0.0 * flipped.to(torch.float32)",
        "test_linalg.py",
    ),
    Mutant(
        "blocks come in the order of their names",
        "linalg.py",
        "return [state[found[number]] for number in sorted(found)]",
        "return [state[key] for key in sorted(found.values())]",
        "test_many_layers.py",
    ),
    Mutant(
        "later steps of training change nothing",
        "scans/value_embedding.py",
        "(1 - decay) * after - rate * carried.T @ vectors",
        "after",
        "test_scans.py",
        "effect or linear",
    ),
    Mutant(
        "two segments of training change places",
        "scans/value_embedding.py",
        "after @ earlier[TRANSITION]",
        "earlier[TRANSITION] @ after",
        "test_scans.py",
        "segments",
    ),
    Mutant(
        "steps of a recorded training are walked from the first",
        "scoring/sources/_walk.py",
        "for number in reversed(steps):",
        "for number in steps:",
        "test_recorded_scores.py",
        "taken_back",
    ),
    Mutant(
        "the learning rate of a mean is that of a sum",
        "scoring/sources/_walk.py",
        '(len(own) if recorded.reduction == "mean" else 1)',
        "1",
        "test_recorded_scores.py",
        "taken_back",
    ),
    Mutant(
        "a probe is taken of every block with the same signs for all examples",
        "likelihoods/base.py",
        "sign_block(seed, ids.to(outputs.device), flat, probe)",
        "sign_block(seed, ids.to(outputs.device) * 0, flat, probe)",
        "test_likelihood.py",
    ),
)
