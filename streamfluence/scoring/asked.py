"""What scores are asked for: what is read out of them, and what multiplies them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamfluence.job import Score
from streamfluence.short_forms import readout_options


@dataclass(frozen=True)
class Asked:
    """What scores are asked for, as ``[score]`` and ``[readouts]`` of a job say; nothing asks for defaults.

    Attributes:
        readouts: Members of the family ``readouts``.
        top_k, subsets: Short for options of some of them.
        options: Options by readout; one that has some is read out, too.
        scale: Member of the family ``scales``: what the scores of each example are multiplied by.
        source: Member of ``scoring.sources``.
        solver, solver_options: What solves the curvature for a source that does, and its options.
        record, scan, scan_options: Which recorded training, and by what its steps are walked.
    """

    readouts: Sequence[str] = ()
    top_k: int | None = None
    subsets: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: str | None = None
    source: str | None = None
    solver: str | None = None
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None
    scan: str | None = None
    scan_options: Mapping[str, Any] = field(default_factory=dict)

    def tables(self) -> dict[str, dict[str, Any]] | None:
        """Return the options of every readout that is asked for, by name; None if none is."""
        if not (self.readouts or self.top_k or self.subsets or self.options):
            return None
        return readout_options(self._score(), self.options)

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Return the options of what is read out where nothing is asked for."""
        return readout_options(Score(source=self.source or Score.source), {})

    def _score(self) -> Score:
        readouts = tuple(self.readouts) or Score.readouts
        return Score(readouts, self.top_k, self.subsets, source=self.source or Score.source)
