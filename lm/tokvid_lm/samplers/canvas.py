"""Videos under way: which ids are given, which are wanted, and what each place may hold. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokvid.errors import ModelError, ShapeError
from tokvid_lm.layout import Layout
from tokvid_lm.positions import Coordinates
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import ACTION, Template, VideoHeader


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """The bodies of videos of one header, on the CPU.

    ``ids`` int64 and ``wanted`` bool ``[rows,L]``: the ids that are given, and where codes are wanted (``<|mask|>``
    stands there). Of each place: ``slot`` int64 ``[L]`` (-1: no code), ``frame`` int64 ``[L]``, its latent frame, and
    ``cell`` int64 ``[L,3]``. ``mask_id`` is the id of ``<|mask|>``.
    """

    header: VideoHeader
    ids: Tensor
    wanted: Tensor
    slot: Tensor
    frame: Tensor
    cell: Tensor
    mask_id: int

    @classmethod
    def build(
        cls,
        template: Template,
        layout: Layout,
        header: VideoHeader,
        rows: int,
        *,
        known_ids: Tensor | None = None,
        known: Tensor | None = None,
        action_ids: Tensor | None = None,
    ) -> Canvas:
        """``rows`` empty videos; or with the ``known`` ``[rows,t,h,w]`` cells of ``known_ids`` ``[rows,P,t,h,w]``
        given.

        ``action_ids`` int64 ``[rows,(t-1)*actions]`` where the header has actions.
        """
        grid, slots = header.grid, template.vocabulary.slots
        body = template.body(header)
        is_code = body.is_code
        ids = body.ids.repeat(rows, 1)
        if header.actions:
            if action_ids is None or action_ids.shape != (rows, (grid.t - 1) * header.actions):
                raise ModelError(f"a video with actions needs the {(grid.t - 1) * header.actions} of each row")
            ids[ids == ACTION] = action_ids.flatten()
        wanted = is_code.repeat(rows, 1)
        ids[wanted] = template.vocabulary.mask_id
        if known is not None and known_ids is not None:
            if known.shape != (rows, grid.t, grid.h, grid.w):
                raise ShapeError(
                    f"known must be bool [t,h,w] of a {grid} grid, got {list(known.shape[1:])} for {rows} rows"
                )
            given = layout.flatten(known[:, None].expand(-1, slots, -1, -1, -1))
            codes = layout.flatten(known_ids)
            ids[:, is_code] = torch.where(given, codes, template.vocabulary.mask_id)
            wanted[:, is_code] = ~given
        slot = torch.full_like(body.ids, -1)
        slot[is_code] = layout.slots(grid, slots)
        cell = torch.zeros(len(slot), 3, dtype=torch.int64)
        cell[is_code] = layout.cells(grid, slots)
        return cls(
            header=header,
            ids=ids,
            wanted=wanted,
            slot=slot,
            frame=body.frame,
            cell=cell,
            mask_id=template.vocabulary.mask_id,
        )

    def __len__(self) -> int:
        return self.ids.shape[1]

    @property
    def is_code(self) -> Tensor:
        """Where codes stand, bool ``[L]``."""
        return self.slot >= 0

    @property
    def code_ids(self) -> Tensor:
        """The sequence of the ids of codes, ``[rows,S]``."""
        return self.ids[:, self.is_code]

    def places(self, frame: int) -> slice:
        """The places of a latent frame."""
        found = (self.frame == frame).nonzero()
        return slice(int(found[0]), int(found[-1]) + 1)

    def coordinates(self, lengths: Tensor, places: slice) -> Coordinates:
        """Where ``places`` stand in documents whose prompts have ``lengths`` ``[rows]`` ids."""
        cell, code = self.cell[places], self.is_code[places]
        index = lengths[:, None] + torch.arange(len(self))[places]
        start = lengths + int(self.is_code.int().argmax())
        rows = len(lengths)
        return Coordinates(
            index=index,
            cell=cell.expand(rows, -1, -1),
            start=start[:, None].expand_as(index),
            is_content=code.expand(rows, -1),
        )

    def fed(self, ids: Tensor, places: slice, sampling: Sampling) -> Tensor:
        """What the model is fed of ``places`` of ``ids`` ``[rows,L]``: those rows, and with guidance their null twins.

        A twin sees the same codes, but for the cells that were given where guidance is towards them too.
        """
        part = ids[:, places]
        if not sampling.guided:
            return part
        given = self.is_code[places] & ~self.wanted[:, places]
        return torch.cat([part, part.masked_fill(given, self.mask_id) if sampling.guides_known else part])

    def rows(self, part: slice) -> Canvas:
        """The same of some rows."""
        return replace(self, ids=self.ids[part], wanted=self.wanted[part])
