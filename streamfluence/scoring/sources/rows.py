"""Scores as products of stored rows: the data is read once, when rows are made, and never again."""

from collections.abc import Collection, Iterator, Sequence

from streamfluence.readouts.base import NEEDS, ScoreBlock
from streamfluence.run.rows import row_receipts
from streamfluence.run.sets import named_query_set
from streamfluence.scoring import product as _product
from streamfluence.scoring.scaled import scale_of
from streamfluence.scoring.sources.base import Source, Tile
from streamfluence.scoring.stored import StoredRows, query_tiles, score_sides
from streamfluence.scoring.terms import Term


class Rows(Source):
    """Inner products of whitened rows, projected and quantised as the run stores them."""

    gives = NEEDS

    def tiles(self) -> list[Tile]:
        return query_tiles(self.run, named_query_set(self.run, self.spec["queries"]))

    def blocks(
        self,
        partitions: Sequence[int],
        needs: Collection[str],
        tile: Tile,
        block_rows: int | None = None,
    ) -> Iterator[ScoreBlock]:
        run, spec = self.run, self.spec
        scale = scale_of(spec["scale"]) if "scores" in needs else None
        columns = scale.columns if scale else ()
        sides = score_sides(run, self.device, spec["queries"], spec["damping"], tile, spec["scale"])
        terms = [
            Term(
                StoredRows(run, row_receipts(run, "train", checkpoint, partitions), needs, columns),
                codec,
                queries,
                weight,
            )
            for checkpoint, (codec, queries, weight) in enumerate(sides)
        ]
        return _product.blocks_of(terms, needs, scale, block_rows)
