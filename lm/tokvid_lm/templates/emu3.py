"""The order of Emu3 (Wang et al. 2024, arXiv 2409.18869): resolution, rate and duration, then rows and frames with
ends.

``<|video|> mode h <|x|> w [<|fps|> n] <|duration|> t <|codes|> ((codes of a row) <|row|>)*h <|frame|> ...
<|/video|>``. The duration counts latent frames, which are known where seconds are not.
"""

from __future__ import annotations

from tokvid.grid import Grid
from tokvid_lm.templates.base import CODE, Template, VideoHeader
from tokvid_lm.vocabulary import DURATION, END_OF_FRAME, END_OF_ROW, FPS


class Emu3Template(Template):
    """A header with resolution, rate and duration; every row and every latent frame has an end."""

    kind = "emu3"

    def header_fields(self, header: VideoHeader) -> list[int]:
        """``h <|x|> w [<|fps|> n] <|duration|> t``."""
        grid, special = header.grid, self.vocabulary.special
        return [*self.sizes(grid.h, grid.w), *self.fps(header), special[DURATION], *self.number(grid.t)]

    def read_fields(self, sizes: list[int], fields: dict[str, float]) -> tuple[Grid, float | None]:
        """The inverse of :meth:`header_fields`."""
        h, w = sizes
        return Grid(t=int(fields[DURATION]), h=h, w=w), fields.get(FPS)

    def frame(self, grid: Grid) -> list[int]:
        """Codes with ``<|row|>`` after each row, and ``<|frame|>``."""
        row = [CODE] * (grid.w * self.vocabulary.slots) + [self.vocabulary.special[END_OF_ROW]]
        return [*(row * grid.h), self.vocabulary.special[END_OF_FRAME]]

    def _names(self) -> tuple[str, ...]:
        return (DURATION,)
