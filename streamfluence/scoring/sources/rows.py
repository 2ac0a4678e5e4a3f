"""Scores as products of stored rows: the data is read once, when rows are made, and never again."""

from collections.abc import Iterator, Mapping
from typing import Any

from streamfluence.errors import InputError
from streamfluence.readouts.base import NEEDS, ScoreBlock
from streamfluence.run.opened import OpenRun
from streamfluence.run.sets import named_query_set
from streamfluence.scoring import product as _product
from streamfluence.scoring.asked import Asked
from streamfluence.scoring.queries import Queries
from streamfluence.scoring.scaled import scale_of
from streamfluence.scoring.sources.base import Source, Tile, Wanted


class Rows(Source):
    """Inner products of whitened rows, projected and quantised as the run stores them."""

    gives = NEEDS

    @classmethod
    def pinned(cls, run: OpenRun, asked: Asked, before: Mapping[str, Any]) -> dict[str, Any]:
        if asked.solver_options:
            raise InputError(
                "solver_options are of score.source = 'streamed'; stored rows are whitened already, so "
                "leave them out"
            )
        return {}

    def tiles(self) -> list[Tile]:
        return self._queries(named_query_set(self.run, self.spec["queries"])).tiles()

    def blocks(self, wanted: Wanted) -> Iterator[ScoreBlock]:
        terms = self._queries(self.spec["queries"]).terms(
            wanted.partitions, wanted.tile, wanted.needs
        )
        scale = scale_of(self.spec["scale"]) if "scores" in wanted.needs else None
        return _product.blocks_of(terms, wanted.needs, scale, wanted.block_rows)

    def _queries(self, name: str) -> Queries:
        return Queries(self.run, name, self.spec["damping"], self.spec["scale"], self.device)
