"""``<|video|> mode t <|x|> h <|x|> w [<|fps|> n] <|codes|> codes... <|/video|>``: nothing between the codes."""

from __future__ import annotations

from tokvid.grid import Grid
from tokvid_lm.templates.base import CODE, Template, VideoHeader
from tokvid_lm.vocabulary import FPS


class BareTemplate(Template):
    """A header with the grid, then nothing but codes."""

    kind = "bare"

    def header_fields(self, header: VideoHeader) -> list[int]:
        """``t <|x|> h <|x|> w [<|fps|> n]``."""
        grid = header.grid
        return [*self.sizes(grid.t, grid.h, grid.w), *self.fps(header)]

    def read_fields(self, sizes: list[int], fields: dict[str, float]) -> tuple[Grid, float | None]:
        """The inverse of :meth:`header_fields`."""
        t, h, w = sizes
        return Grid(t=t, h=h, w=w), fields.pop(FPS, None)

    def frame(self, grid: Grid) -> list[int]:
        """Codes alone."""
        return [CODE] * (grid.h * grid.w * self.vocabulary.slots)
