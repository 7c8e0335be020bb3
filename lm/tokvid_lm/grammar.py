"""What may come next: a state machine over ids, one bool mask over the whole vocabulary per kind of state.

A grammar is a program: step i of a row may emit the ids of mask ``program[i]``. Text repeats its one step until
an end id; a video walks through header, codes and end, and stops. So a malformed video cannot be sampled, at any
temperature. The grammar knows ids only; the samplers and the Hugging Face ``generate`` both ask it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokvid.errors import ModelError
from tokvid_lm.layout import Layout
from tokvid_lm.templates import CODE, Template, VideoHeader
from tokvid_lm.vocabulary import VideoVocabulary

FINISHED = -1


class Grammar:
    """The states of a row are its step, 0 at the start, or :data:`FINISHED`.

    ``masks`` is bool ``[M, total_size]``; ``program`` is int64 ``[L]`` with values in [0, M). ``end_ids`` finish
    a row wherever they are emitted. With ``repeats`` the last step is repeated for ever, otherwise a row is
    finished after L steps. A finished row may emit ``pad_id`` only.
    """

    def __init__(self, masks: Tensor, program: Tensor, *, end_ids: Sequence[int], pad_id: int, repeats: bool) -> None:
        if not bool(masks.any(dim=1).all()):
            raise ModelError("a state of the grammar allows no id at all")
        pad = torch.zeros_like(masks[:1])
        pad[0, pad_id] = True
        self.masks = torch.cat([masks, pad])
        self.program = program
        self.end_ids = torch.tensor(sorted(set(end_ids)), dtype=torch.int64)
        self.pad_id = pad_id
        self.repeats = repeats

    @classmethod
    def text(cls, vocabulary: VideoVocabulary, end_ids: Iterable[int]) -> Grammar:
        """Text: every id in [0, text_size), and the end ids, which finish the row."""
        ends = sorted(set(end_ids))
        mask = torch.zeros(1, vocabulary.total_size, dtype=torch.bool)
        mask[0, : vocabulary.text_size] = True
        mask[0, ends] = True
        pad_id = ends[0] if ends else 0
        return cls(mask, torch.zeros(1, dtype=torch.int64), end_ids=ends, pad_id=pad_id, repeats=True)

    @classmethod
    def video(
        cls,
        vocabulary: VideoVocabulary,
        template: Template,
        layout: Layout,
        header: VideoHeader,
        *,
        pad_id: int | None = None,
    ) -> Grammar:
        """One whole video: forced header and separators, a code of the right slot elsewhere, its end; no actions.

        A finished row emits ``pad_id`` (None: ``<|/video|>`` again).
        """
        body = template.body(header).ids
        separators = body[body != CODE].tolist()
        forced = template.header(header)
        singles = sorted({*forced, *separators, vocabulary.close_id})
        masks = torch.zeros(vocabulary.slots + len(singles), vocabulary.total_size, dtype=torch.bool)
        for slot in range(vocabulary.slots):
            ids = vocabulary.slot_range(slot)
            masks[slot, ids.start : ids.stop] = True
        row_of = {token: vocabulary.slots + row for row, token in enumerate(singles)}
        for token, row in row_of.items():
            masks[row, token] = True
        middle = torch.empty_like(body)
        middle[body == CODE] = layout.slots(header.grid, vocabulary.slots)
        middle[body != CODE] = torch.tensor([row_of[token] for token in separators], dtype=torch.int64)
        program = torch.cat(
            [
                torch.tensor([row_of[token] for token in forced], dtype=torch.int64),
                middle,
                torch.tensor([row_of[vocabulary.close_id]], dtype=torch.int64),
            ]
        )
        pad_id = vocabulary.close_id if pad_id is None else pad_id
        return cls(masks, program, end_ids=(), pad_id=pad_id, repeats=False)

    def start(self, rows: int) -> Tensor:
        """The states of ``rows`` rows that have emitted nothing, int64 ``[rows]``."""
        return torch.zeros(rows, dtype=torch.int64)

    def allowed(self, states: Tensor) -> Tensor:
        """The ids each row may emit, bool ``[rows, total_size]``."""
        return self.masks.index_select(0, self._mask_rows(states))

    def advance(self, states: Tensor, ids: Tensor) -> Tensor:
        """The states after each row emitted its id ``[rows]``; raises :class:`ModelError` for a forbidden id."""
        self._check(states, ids)
        after = states + 1
        if self.repeats:
            after = after.clamp(max=len(self.program) - 1)
        over = (states == FINISHED) | torch.isin(ids, self.end_ids.to(ids.device)) | (after >= len(self.program))
        return after.masked_fill(over, FINISHED)

    def replay(self, ids: Tensor) -> Tensor:
        """The states of rows that have emitted ``ids`` ``[rows, n]``, in one step however long they are.

        What follows the end of a row is not looked at: ``generate`` fills finished rows with its own padding.
        """
        rows, length = ids.shape
        ended = torch.isin(ids, self.end_ids.to(ids.device))
        before = (ended.cumsum(1) - ended.long()) > 0
        steps = torch.arange(length, device=ids.device).expand(rows, -1)
        steps = steps.clamp(max=len(self.program) - 1) if self.repeats else steps
        steps = steps.masked_fill(before | (steps >= len(self.program)), FINISHED)
        live = steps != FINISHED
        self._check(steps[live], ids[live])
        last = min(length, len(self.program) - 1) if self.repeats else length
        over = ended.any(1) | (last >= len(self.program))
        return torch.full((rows,), last, device=ids.device).masked_fill(over, FINISHED)

    def _mask_rows(self, states: Tensor) -> Tensor:
        rows = self.program.to(states.device)[states.clamp(min=0)]
        return rows.masked_fill(states == FINISHED, len(self.masks) - 1)

    def _check(self, states: Tensor, ids: Tensor) -> None:
        inside = (ids >= 0) & (ids < self.masks.shape[1])
        rows = self._mask_rows(states).to(self.masks.device)
        legal = inside & self.masks[rows, (ids * inside).to(self.masks.device)].to(ids.device)
        if not bool(legal.all()):
            place = int((~legal).nonzero()[0])
            raise ModelError(f"the grammar forbids id {int(ids[place])} at step {int(states[place])}")


class GrammarLogitsProcessor(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """A :class:`Grammar` for ``model.generate(logits_processor=[...])``.

    ``prompt_length``: the ids of ``input_ids`` that are prompt. ``first_step``: the steps of the grammar that
    the end of the prompt has already taken (a header, say).
    """

    def __init__(self, grammar: Grammar, prompt_length: int, *, first_step: int = 0) -> None:
        if first_step and grammar.repeats:
            raise ModelError("a grammar that repeats has no steps to skip")
        self.grammar = grammar
        self.prompt_length = prompt_length
        self.first_step = first_step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the logits ``[rows, total_size]`` of forbidden ids to minus infinity."""
        if scores.shape[1] != self.grammar.masks.shape[1]:
            raise ModelError(
                f"the grammar knows {self.grammar.masks.shape[1]} ids, the model {scores.shape[1]}; extend the model"
            )
        emitted = input_ids[:, self.prompt_length :]
        if self.first_step:
            head = self.grammar.masks[self.grammar.program[: self.first_step]].int().argmax(1)
            emitted = torch.cat([head.to(emitted).expand(len(emitted), -1), emitted], dim=1)
        allowed = self.grammar.allowed(self.grammar.replay(emitted).cpu()).to(scores.device)
        return scores.masked_fill(~allowed, float("-inf"))
