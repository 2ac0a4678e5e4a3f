"""Which training examples are left out: named ones, those of largest score, or random ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamfluence.errors import InputError
from streamfluence.evaluation.retraining import drawn_examples
from streamfluence.evaluation.truth.scores import JudgedScores


@dataclass(frozen=True)
class Chosen:
    """What a user chose; exactly one of the first three is given.

    Attributes:
        examples: Rows of training examples.
        top, random: How many groups of those with the largest absolute scores, or at random.
        leave: Examples a group.
    """

    examples: Sequence[int] | None = None
    top: int | None = None
    random: int | None = None
    leave: int = 1

    def check(self, count: int) -> None:
        """Raise InputError if it names no example of ``count``, one twice, or leaves none to train on."""
        if [self.examples is None, self.top is None, self.random is None].count(False) != 1:
            raise InputError("give one of --examples, --top and --random")
        chosen = self._count()
        if chosen < 1 or self.leave < 1:
            raise InputError("no example was chosen; name at least one")
        if self.leave >= count or chosen > count:
            raise InputError(
                f"{chosen:,} examples in groups of {self.leave:,} were asked for, but the training set has "
                f"{count:,}{', and some must stay' if self.leave >= count else ''}"
            )
        for row in self.examples or []:
            if not 0 <= row < count:
                raise InputError(f"--examples {row}: the training set has rows 0 to {count - 1:,}")
        different = len(set(self.examples or []))
        if self.examples is not None and (different < chosen or chosen % self.leave):
            raise InputError(
                f"--examples names {chosen} rows, {different} of them different; they must differ and fill "
                f"groups of --leave {self.leave}"
            )

    def rows(self, scores: JudgedScores, queries: np.ndarray, draw_seed: int) -> np.ndarray:
        """Return the chosen rows, group after group; ``queries`` are those whose scores count."""
        if self.examples is not None:
            return np.array(self.examples, np.int64)
        if self.top is not None:
            return scores.largest(self._count(), queries)
        return drawn_examples(draw_seed, scores.count)[: self._count()]

    def _count(self) -> int:
        if self.examples is not None:
            return len(self.examples)
        return (self.top or self.random or 0) * self.leave
