"""kronfluence (PyPI): EK-FAC, K-FAC, diagonal and no curvature, over Linear and Conv2d layers.

Its pairwise scores are the query's loss gradient times the damped inverse times the example's
loss gradient: positive where removing the example raises the query's loss. Damping is relative
(0.1 of a layer's mean eigenvalue) with the package's heuristic and absolute otherwise. Losses
are sums over a batch, as its examples have them.
"""

import tempfile
from typing import Any

import torch
from _case import Case, Method, main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn

BATCH = 128
# 1e-8 is the package's default; None is its heuristic, 0.1 x the mean eigenvalue of a layer.
DAMPINGS = (1e-8, None, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)


class CaseTask(Task):
    """The case's loss as training loss and as measurement."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Return the summed loss of a batch, on labels drawn from the model with ``sample``."""
        x, y = batch
        outputs = model(x)
        if sample:
            with torch.no_grad():
                y = self._case.sampled(outputs.detach())
        return self._case.losses(outputs, y).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """Return the summed loss of the queries of a batch."""
        return self.compute_train_loss(batch, model)


class Fitted:
    """The factors of one strategy."""

    def __init__(self, case: Case, strategy: str, empirical: bool) -> None:
        task = CaseTask(case)
        self._folder = tempfile.TemporaryDirectory()
        self._analyzer = Analyzer(
            "case",
            prepare_model(case.network, task),
            task,
            cpu=True,
            disable_tqdm=True,
            output_dir=self._folder.name,
        )
        arguments = FactorArguments(strategy=strategy, use_empirical_fisher=empirical)
        self._analyzer.fit_all_factors(
            "factors", case.train, per_device_batch_size=BATCH, factor_args=arguments
        )

    def score(self, case: Case, damping: float | None) -> tuple[Tensor, int]:
        """Return scores at one damping; the examples' gradients are computed again each time."""
        self._analyzer.compute_pairwise_scores(
            scores_name=f"damping-{damping}",
            factors_name="factors",
            query_dataset=case.queries,
            train_dataset=case.train,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )
        found = self._analyzer.load_pairwise_scores(f"damping-{damping}")["all_modules"]
        return found.T, 0


def method(strategy: str, empirical: bool = False) -> Method:
    """Return a family: one strategy, all dampings."""
    name = f"{strategy}-empirical" if empirical else strategy
    dampings = (1e-8,) if strategy == "identity" else DAMPINGS
    named = {
        f"{name}-{'heuristic' if damping is None else f'damping{damping:g}'}": damping
        for damping in dampings
    }
    return Method(
        name,
        named,
        lambda case: Fitted(case, strategy, empirical),
        lambda case, fitted, damping: fitted.score(case, damping),
    )


if __name__ == "__main__":
    main(
        "kronfluence",
        [method(name) for name in ("ekfac", "kfac", "diagonal", "identity")]
        + [method("ekfac", empirical=True)],
    )
