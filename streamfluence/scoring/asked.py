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
    """

    readouts: Sequence[str] = ()
    top_k: int | None = None
    subsets: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: str | None = None

    def tables(self) -> dict[str, dict[str, Any]] | None:
        """Return the options of every readout that is asked for, by name; None if none is."""
        if not (self.readouts or self.top_k or self.subsets or self.options):
            return None
        wanted = Score(tuple(self.readouts or Score.readouts), self.top_k, self.subsets)
        return readout_options(wanted, self.options)
