"""The bare template with every row of cells under its number, and a separator after every latent frame.

With one-dimensional positions separators carry geometry: how far the last one lies back says in which column a code
stands. Emu3 (Wang et al. 2024, arXiv 2409.18869) ends rows and frames in this way; a number in place of a mark says
which row it is, too. They cost about 1/w more ids.
"""

from __future__ import annotations

from tokvid.grid import Grid
from tokvid_lm.templates.bare import BareTemplate
from tokvid_lm.templates.base import CODE
from tokvid_lm.vocabulary import END_OF_FRAME


class RowsTemplate(BareTemplate):
    """``header ((number of the row) (codes of the row))*h <|frame|> ... <|/video|>``; rows count from 0."""

    kind = "rows"

    def frame(self, grid: Grid) -> list[int]:
        """Codes with the digits of its number before each row, and ``<|frame|>``."""
        row = [CODE] * (grid.w * self.vocabulary.slots)
        rows = [token for number in range(grid.h) for token in (*self.number(number), *row)]
        return [*rows, self.vocabulary.special[END_OF_FRAME]]
