"""TRAK (PyPI ``traker``): random projections of margin gradients, their Gram matrix inverted.

TRAK predicts how a query's model output f rises when an example is included. With Q = -dL/df the
query's loss falls by Q times that, so its scores times the query's Q are the rise of the loss when
the example is removed. On a CPU the package projects with Gaussian matrices, block by block; its
CUDA kernels are not used.
"""

import logging
import tempfile
from collections.abc import Mapping

import torch
from _case import Case, Method, main
from torch import Tensor
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector

BATCH = 128
# Added to the Gram matrix, which is a sum over examples.
RIDGES = (0.0, 1e-2, 1e-1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3)


class CaseOutput(AbstractModelOutput):
    """TRAK's model output for the likelihood of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def get_output(self, model, weights, buffers, x: Tensor, y: Tensor) -> Tensor:
        """Return f of one example."""
        outputs = functional_call(model, (weights, buffers), x.unsqueeze(0))
        return self._case.margins(outputs, y.unsqueeze(0)).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch) -> Tensor:
        """Return Q of every example, ``(example, 1)``."""
        x, y = batch
        with torch.no_grad():
            outputs = functional_call(model, (weights, buffers), x)
            return self._case.pulls(outputs, y).unsqueeze(-1)


class Featurized:
    """Projected gradients of one net; the last step is done again for every ridge."""

    def __init__(self, case: Case, width: int | None, half: bool) -> None:
        self._case = case
        self._folder = tempfile.TemporaryDirectory()
        self._width = width
        projector = {"projector": NoOpProjector(device="cpu")} if width is None else {}
        self._traker = TRAKer(
            model=case.network,
            task=CaseOutput(case),
            train_set_size=len(case.train),
            save_dir=self._folder.name,
            device="cpu",
            proj_dim=width or 0,
            use_half_precision=half,
            logging_level=logging.WARNING,
            **projector,
        )
        self._item = 2 if half else 4
        self._weights = {name: one.clone() for name, one in case.network.state_dict().items()}
        self._traker.load_checkpoint(self._weights, model_id=0)
        for batch in case.batches(case.train, BATCH):
            self._traker.featurize(batch=batch, num_samples=len(batch[0]))
        x, y = case.queries.tensors
        with torch.no_grad():
            self._query_pulls = case.pulls(case.network(x), y)

    def score(self, ridge: float) -> tuple[Tensor, int]:
        """Return scores of all queries with this ridge, and the bytes of a row."""
        traker, name, count = self._traker, f"ridge{ridge:g}", len(self._case.queries)
        traker.score_computer.lambda_reg = ridge
        traker.saver.model_ids[0]["is_finalized"] = 0  # else the package keeps the first ridge
        traker.finalize_features()
        traker.start_scoring_checkpoint(name, self._weights, model_id=0, num_targets=count)
        for batch in self._case.batches(self._case.queries, BATCH):
            traker.score(batch=batch, num_samples=len(batch[0]))
        found = torch.from_numpy(traker.finalize_scores(exp_name=name).copy())
        return found.float() * self._query_pulls, (traker.proj_dim + 1) * self._item


def method(width: int | None, half: bool) -> Method:
    """Return a family: one width and precision, all ridges."""
    name = "unprojected" if width is None else f"k{width}"
    ridges: Mapping[str, float] = {f"{name}-ridge{ridge:g}": ridge for ridge in RIDGES}
    if half:
        name = f"{name}-half"
        ridges = {f"{name}-default": 0.0}  # every option as the package has it
    return Method(
        name,
        ridges,
        lambda case: Featurized(case, width, half),
        lambda case, featurized, ridge: featurized.score(ridge),
    )


if __name__ == "__main__":
    main(
        "traker", [method(2048, True), method(512, False), method(2048, False), method(None, False)]
    )
