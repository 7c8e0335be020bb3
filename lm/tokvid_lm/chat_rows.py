"""A conversation and, for guidance, an empty prompt, as the rows that a sampler runs.

The conversation has a cache of its own that outlives the drawing; the empty prompt begins anew with every video.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokvid_lm.document import DocumentWriter
from tokvid_lm.positions import Coordinates
from tokvid_lm.samplers.next_token import text_place
from tokvid_lm.samplers.runner import Runner, Way
from tokvid_lm.templates import VideoHeader

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM


class ChatRows:
    """What the samplers ask of a :class:`~tokvid_lm.samplers.runner.Runner`; row 0 is the conversation of which
    ``read`` ids are in ``runner``, row 1, if ``guided``, the header after nothing. ``room`` more ids are fed."""

    def __init__(
        self, runner: Runner, lm: VideoLM, header: VideoHeader, *, read: int, guided: bool, room: int, way: Way
    ) -> None:
        self._runner = runner
        self._header = torch.tensor(lm.template.header(header))[None]
        count = self._header.shape[1]
        self._places = runner.place_ids(text_place(torch.arange(read, read + count)[None]))
        lengths = [read + count]
        self._null: Runner | None = None
        if guided:
            writer = DocumentWriter(lm.template, lm.layout)
            writer.text(lm.processor.start_ids(), scored=False)
            writer.header(header)
            null = writer.finish()
            self._null = Runner(lm.model, lm.head, [null], room, positions=lm.positions, way=way)
            lengths.append(len(null))
        self.lengths = torch.tensor(lengths)

    def prefill(self) -> Tensor:
        """Feed the headers; the features ``[rows,1,...]`` of their last ids."""
        features = self._runner.feed(self._header, self._places)[:, -1:]
        return features if self._null is None else torch.cat([features, self._null.prefill()])

    def place_ids(self, place: Coordinates) -> Tensor:
        """As :meth:`Runner.place_ids`."""
        return self._runner.place_ids(place)

    def feed(self, ids: Tensor, place_ids: Tensor, *, block: bool = False, keep: bool = True) -> Tensor:
        """As :meth:`Runner.feed`, row by row: each has its own past."""
        runners = [self._runner] if self._null is None else [self._runner, self._null]
        return torch.cat(
            [
                runner.feed(ids[row : row + 1], place_ids[..., row : row + 1, :], block=block, keep=keep)
                for row, runner in enumerate(runners)
            ]
        )

    def logits(self, features: Tensor, low: int, high: int) -> Tensor:
        """As :meth:`Runner.logits`."""
        return self._runner.logits(features, low, high)
