"""One document as a model learns from it: its ids, what each hidden state is asked for, and who sees whom.

A document is written piece by piece. Labels stand where the hidden state is that must answer: of text and of videos
that are drawn by next-token one place before the id, of masked cells at the cell itself, so that nothing is shifted
later. Whatever follows a video sees it as it was read: causal, in the next-token mode. This knows no clips, no
schedule and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from tokvid.grid import Grid
from tokvid_lm.layout import Layout
from tokvid_lm.templates import Template, VideoHeader
from tokvid_lm.templates.base import ACTION
from tokvid_lm.vocabulary import CLOSE_KNOWN, MODES, OPEN_KNOWN, Mode

IGNORED = -100
"""The label of a position that is not asked for anything, as Hugging Face writes it."""
TEXT = -1
"""Stands for the latent frame of a label that is text."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """Arrays ``[n]``: what the model reads, and ``labels``, the id that each hidden state is asked for.

    ``frame`` and ``mode`` are of the label: its latent frame (:data:`TEXT` for text) and the number of its mode in
    :data:`MODES`. ``order``, ``block`` and ``ghost`` say who sees whom, as :class:`~tokvid_lm.mask_spec.MaskSpec`
    reads them. ``index`` is the place in the document (of a masked copy that of what it is a copy of), ``content``
    where codes stand, ``cell`` ``[n,3]`` their (t, h, w), ``start`` the index of their video's first code.
    """

    ids: Ints
    labels: Ints
    frame: Ints
    mode: Ints
    order: Ints
    block: Ints
    ghost: Bools
    index: Ints
    content: Bools
    cell: Ints
    start: Ints

    def __len__(self) -> int:
        return len(self.ids)


class DocumentWriter:
    """Writes one document; :meth:`finish` gives it. Call the pieces in their order."""

    def __init__(self, template: Template, layout: Layout) -> None:
        self.template = template
        self.layout = layout
        self.vocabulary = template.vocabulary
        self._pieces: list[_Piece] = []
        self._copies: list[_Piece] = []
        self._length = 0
        self._blocks = 0

    def text(self, ids: Sequence[int], *, scored: bool) -> None:
        """Text, causal; with ``scored`` every id is asked for, where something stands before it."""
        self._causal(np.asarray(ids, np.int64), asked=np.full(len(ids), scored))

    def video(
        self,
        code_ids: Ints,
        header: VideoHeader,
        *,
        asked: Bools,
        masked: Bools | None = None,
        action_ids: Ints | None = None,
        open_asked: bool = False,
    ) -> None:
        """A whole video of ``code_ids`` ``[S]``, in the mode of its header, with the ids of its actions if it has any.

        ``asked`` ``[S]``: the codes that the model must give. In the masked modes they are hidden; ``masked`` (None:
        ``asked``) may hide more, and what is hidden and not asked for teaches nothing. With ``open_asked`` that a video
        comes is asked for, too.
        """
        body = self.template.body(header)
        ids, is_code = body.ids.numpy().copy(), body.is_code.numpy()
        ids[body.ids.numpy() == ACTION] = [] if action_ids is None else action_ids
        ids[is_code] = code_ids
        wanted, hidden = np.zeros((2, len(ids)), bool)
        wanted[is_code] = asked
        hidden[is_code] = asked if masked is None else masked
        self.header(header, open_asked=open_asked)
        where = _Where(body.frame.numpy(), is_code, self._cells(header, is_code), self._length + int(is_code.argmax()))
        if header.mode == "next_token":
            self._causal(ids, asked=wanted, where=where)
        elif header.mode == "maskgit":
            self._block(ids, hidden, wanted, header.mode, where)
        else:
            self._frames(ids, hidden, wanted, where)
        self._causal(np.array([self.vocabulary.close_id]))

    def header(self, header: VideoHeader, *, open_asked: bool = False) -> None:
        """The header of a video to come; with ``open_asked`` its first id is asked for."""
        ids = np.asarray(self.template.header(header), np.int64)
        self._causal(ids, asked=np.arange(len(ids)) < int(open_asked))

    def known(self, code_ids: Ints, known: Bools, grid: Grid) -> None:
        """A condition prefix: the known cells of a video, for what follows and could not see them in their place.

        It is the body of the video between ``<|known|>`` and ``<|/known|>``, with ``<|mask|>`` for what is not known.
        """
        body = self.template.body(VideoHeader(grid=grid))
        ids = body.ids.numpy().copy()
        ids[body.is_code.numpy()] = np.where(known, code_ids, self.vocabulary.mask_id)
        special = self.vocabulary.special
        self._causal(np.concatenate([[special[OPEN_KNOWN]], ids, [special[CLOSE_KNOWN]]]))

    def finish(self) -> Document:
        """The document; masked copies stand behind all of it."""
        pieces = [*self._pieces, *self._copies]
        columns = {
            field.name: np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(_Piece)
        }
        # Of the ids that are drawn one by one: the place before answers.
        asked = columns.pop("asked")
        next_asked = np.append(asked[1:], False)
        for name, source in (("labels", "ids"), ("frame", "frame"), ("mode", "mode")):
            columns[name] = np.where(next_asked, np.roll(columns[source], -1), columns[name])
        return Document(**columns)

    def _cells(self, header: VideoHeader, is_code: Bools) -> Ints:
        cells = np.zeros((len(is_code), 3), np.int64)
        cells[is_code] = self.layout.cells(header.grid, self.vocabulary.slots).numpy()
        return cells

    def _causal(self, ids: Ints, *, asked: Bools | None = None, where: _Where | None = None) -> None:
        """Ids that see all before them."""
        index = np.arange(self._length, self._length + len(ids))
        block = np.arange(self._blocks, self._blocks + len(ids))
        self._blocks += len(ids)
        self._length += len(ids)
        self._pieces.append(_piece(ids, index=index, order=index, block=block, where=where, asked=asked))

    def _block(self, ids: Ints, hidden: Bools, wanted: Bools, mode: Mode, where: _Where) -> None:
        """Ids that see one another and all before them; hidden ones are masked and answer for themselves."""
        index = np.arange(self._length, self._length + len(ids))
        self._pieces.append(self._masked(ids, hidden, wanted, mode, where, index))
        self._length += len(ids)

    def _frames(self, ids: Ints, hidden: Bools, wanted: Bools, where: _Where) -> None:
        """The clean frames, each a block that sees the frames before it; and a masked copy of each frame.

        A copy sees itself and the clean frames before its own, and nobody sees it: every frame is learned from as the
        sampler will meet it, in one pass (the clean and noised copies of block diffusion, Arriola et al. 2025, arXiv
        2503.09573).
        """
        nothing, first = np.zeros(len(ids), bool), self._length
        for number in range(int(where.frame[-1]) + 1):
            part = where.frame == number
            index = first + np.flatnonzero(part)
            place = where.of(part)
            self._pieces.append(self._masked(ids[part], nothing[part], nothing[part], "frame", place, index))
            if (hidden & wanted)[part].any():
                copy = self._masked(ids[part], hidden[part], wanted[part], "frame", place, index)
                self._copies.append(replace(copy, ghost=np.ones(len(index), bool)))
        self._length += len(ids)

    def _masked(self, ids: Ints, hidden: Bools, wanted: Bools, mode: Mode, where: _Where, index: Ints) -> _Piece:
        """A block whose ``hidden`` ids are masked."""
        self._blocks += 1
        piece = _piece(
            np.where(hidden, self.vocabulary.mask_id, ids),
            index=index,
            order=np.full(len(ids), index[0]),
            block=np.full(len(ids), self._blocks - 1),
            where=where,
            mode=mode,
        )
        return replace(piece, labels=np.where(hidden & wanted, ids, IGNORED))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece(Document):
    """A part of a document; ``asked`` are the ids for which the place before answers."""

    asked: Bools


@dataclass(frozen=True, eq=False)
class _Where:
    """Where the ids of a body stand: their latent frames, which are codes, their cells, the index of the first."""

    frame: Ints
    content: Bools
    cell: Ints
    start: int

    def of(self, part: Bools) -> _Where:
        return _Where(self.frame[part], self.content[part], self.cell[part], self.start)


def _piece(
    ids: Ints,
    *,
    index: Ints,
    order: Ints,
    block: Ints,
    where: _Where | None,
    asked: Bools | None = None,
    mode: Mode = "next_token",
) -> _Piece:
    count = len(ids)
    where = where or _Where(np.full(count, TEXT), np.zeros(count, bool), np.zeros((count, 3), np.int64), 0)
    return _Piece(
        ids=ids,
        labels=np.full(count, IGNORED),
        frame=where.frame,
        mode=np.full(count, MODES.index(mode)),
        order=order,
        block=block,
        ghost=np.zeros(count, bool),
        index=index,
        content=where.content,
        cell=where.cell,
        start=np.full(count, where.start),
        asked=np.zeros(count, bool) if asked is None else asked,
    )
