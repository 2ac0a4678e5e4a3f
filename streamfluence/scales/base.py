"""Contract of an example scale: a number for each example and checkpoint, before checkpoints are summed.

Made of what is stored beside the rows, so that it is chosen when rows are scored, without a pass over
the data. Laws: positive and finite; 1 for a row of zeros, whose score is then 0; one value an
example, whatever examples are beside it.
"""

from collections.abc import Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]


class Scale:
    """Base of every example scale; made without arguments.

    Attributes:
        columns: Names of the stored columns it looks at: ``self_influence`` (squared norm of the
            whitened row), ``grad_norm`` (norm of the row before whitening) or ``loss``.
        per_example: Whether a score keeps the 1/n of what removing one example is predicted to do.
        keeps_prediction: Whether a predicted change of the query is still one after scaling.
    """

    columns: tuple[str, ...] = ()
    per_example = True
    keeps_prediction = False

    def of(self, columns: Columns) -> np.ndarray:
        """Return the multipliers, float32, shape ``(checkpoint, example)``.

        Args:
            columns: Those asked for, each ``(checkpoint, example)``, float32.
        """
        raise NotImplementedError

    def of_queries(self, columns: Columns) -> np.ndarray | None:
        """Return multipliers of the queries likewise, ``(checkpoint, query)``; None for 1."""
        return None

    def meaning(self, unscaled: str) -> str:
        """Return what a scaled score is, by what it is without the scale."""
        raise NotImplementedError

    def unit(self, unscaled: str) -> str:
        """Return the unit of a scaled score."""
        raise NotImplementedError
