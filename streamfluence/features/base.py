"""Contract of a feature: what is measured of an example at one checkpoint.

Life: ``__init__`` with the options of a job -> ``at`` a checkpoint's model -> ``blocks``, ``measure``,
``curvature_vectors``, ``check``. What a score of it means is known without a model.

Laws: the batch split does not change rows; a batch equals its examples taken one at a time; the
same examples in another order have the same rows in that order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from streamfluence.capture.base import Block, Uses
from streamfluence.layout import TRAINING_LOSS
from streamfluence.task import Task

Forward = Callable[[nn.Module, Any], Any]
# From the number of output columns to the number of probes an example, None for all columns.
Probes = Callable[[int], int | None]


@dataclass(frozen=True)
class Ground:
    """What a feature is measured on: the model of one checkpoint, and how a run runs it.

    Attributes:
        task: Gives the loss, the measurements and the probes.
        model: In eval mode, on the device of the batches.
        forward: Of a model and a batch, at the run's precision, its result checked.
        forward_exactly: The same in float32, where the run's precision is lower; else ``forward``.
        examples: A batch of the first training examples, by which shapes are learned.
        exclude: Patterns of parameters that take no part.
        one_by_one: Run one example at a time.
        half: Whether ``forward`` rounds to bfloat16.
    """

    task: Task
    model: nn.Module
    forward: Forward
    forward_exactly: Forward
    examples: Any
    exclude: tuple[str, ...] = ()
    one_by_one: bool = False
    half: bool = False


@dataclass(frozen=True)
class Measured:
    """What is measured of one batch.

    Attributes:
        uses: Of every block, from which a projection makes rows; a plain vector of an example is one
            ``Explicit`` use, shape ``(example, 1, 1, width)``.
        value: Loss (or the query's measurement) of each example, ``(example,)``, float32.
    """

    uses: Uses
    value: Tensor


class Feature:
    """Base of every feature.

    Attributes:
        gradients: Whether it needs gradients of weights. One that does not runs on models without
            trainable weights; its curvature is made of its own training rows, or there is none.
        predicts: Whether a score predicts what removing an example does to the query, 1/n
            included. If not, it is a similarity, and a sum over checkpoints without 1/n.
        centred: Whether the mean over checkpoints is taken off before the product is. It is taken
            off queries alone, which gives the same sum.
        codec: That rows are stored by, where a job says none.
        blocks: What is measured, cut into blocks as projections see them; known once ``at`` was called.
        one_by_one: Number of batches so far that were run one example at a time unplanned.
    """

    gradients = False
    predicts = False
    centred = False
    codec = "bands"
    one_by_one = 0
    blocks: tuple[Block, ...]

    @property
    def sides(self) -> tuple[str, str]:
        """What the training examples of largest and of smallest score are called."""
        return ("helps", "hurts") if self.predicts else ("largest", "smallest")

    def meaning(self, measurement: str) -> str:
        """Return what a score is, and its sign, in one sentence.

        Args:
            measurement: Of the query.
        """
        raise NotImplementedError

    def unit(self, measurement: str) -> str:
        """Return the unit of a score."""
        raise NotImplementedError

    def at(self, ground: Ground) -> None:
        """Make ready to measure at one checkpoint.

        Raises:
            CoverageError: If its model cannot be measured.
            InputError: If an option does not fit the model.
        """
        raise NotImplementedError

    def measure(
        self, batch: Any, measurement: str = TRAINING_LOSS, prove: Sequence[int] = ()
    ) -> Measured:
        """Return what is measured of one batch of tensors on the device of the model.

        Args:
            measurement: Of an example, see ``Task.measure``.
            prove: Positions in the batch of examples whose rows are compared with what they are alone.

        Raises:
            CoverageError: If a row is not that of its example.
        """
        raise NotImplementedError

    def curvature_vectors(
        self, source: str, batch: Any, ids: Tensor, seed: int, probes: Probes
    ) -> Iterator[tuple[Uses, float]]:
        """Yield the vectors of one training batch that a curvature is made of, with their weights.

        Args:
            source: Of the curvature: ``loss`` (rows of training examples) or ``probes``.
            ids: Global row of each example, int64.
            seed, probes: Of probes.
        """
        assert source == "loss", "a job that asks for probes of such a feature is refused"
        yield self.measure(batch).uses, 1.0

    def refuse_padded(self, batch: Any, place: int, one: Any, measurement: str) -> None:
        """Refuse a row that is another when its example is read by itself.

        Nothing is to be refused of a feature of losses that leave out what is padded.

        Args:
            place: Of the example in ``batch``.
            one: The same example, read by itself.

        Raises:
            CoverageError: If the rows differ by more than rounding.
        """

    def check(self, batch: Any) -> dict[str, Any]:
        """Prove on one batch that rows are those of their examples; return facts for the record.

        Returns:
            JSON-able: ``announcements``, sentences to print, and ``precision_cosine``, that of the batch's
            vectors at the run's precision and in float32, or None where they are one.

        Raises:
            CoverageError: If they are not.
        """
        raise NotImplementedError
