"""A conversation with a video language model: what was said, what the model has read of it, and how it answers.

A state machine without a terminal: what happens comes out as events. The key-value cache is kept from turn to turn.
What the model has read is compared with what it should have read, the conversation so far as a document, and only what
differs is read: so a second turn does not compute the first again, and interrupting, trying again and changing what was
said need nothing of their own. A video that is done is read once more, as later text saw videos in training.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tokvid.errors import ModelError, TokvidError
from tokvid.noise import uniform
from tokvid_lm.candidates import only_one
from tokvid_lm.chat_rows import ChatRows
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.generation import SAMPLERS, end_ids
from tokvid_lm.made_by import made_by, model_id
from tokvid_lm.positions import Coordinates
from tokvid_lm.processor import codec_device
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.next_token import text_place
from tokvid_lm.samplers.runner import Runner, Way, context_of, sampling_from
from tokvid_lm.samplers.sampling import Sampling, draw
from tokvid_lm.segments import Segment, TextSegment, Turn, VideoSegment
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_lm import VideoLM

_ROOM = 512  # ids that the cache has room for at first, beside what has been said
_REPLACEMENT = "\ufffd"  # what bytes of a letter that is not complete decode to
_TURN_NOISE = 0x7A1C  # parts the noise of what is said from that of what is drawn
Item = TypeVar("Item")


@dataclass(frozen=True)
class Said:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Drawing:
    """A video is under way: ``done`` of ``total`` latent frames."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Shown:
    """A video of the answer is done: its codes, its frames on the CPU, and what made it."""

    segment: VideoSegment


@dataclass(frozen=True)
class Forgotten:
    """The context was full: the oldest ``turns`` are gone, and the rest was read anew."""

    turns: int


Event = Said | Drawing | Shown | Forgotten


class Chat:
    """A conversation. ``mode`` is how videos are drawn (None: as the model is best), ``video`` what
    :meth:`~tokvid_lm.VideoLM.generate` takes of guidance, temperature and steps, ``text`` how words are chosen (by
    default the likeliest); an answer has at most ``max_new_tokens`` ids of text. Videos that are drawn say that
    ``name`` made them.

    With ``use_cache`` off everything is read anew for every id, which is slow and says the same. Raises
    :class:`ModelError` for a model that was not trained to talk.
    """

    def __init__(
        self,
        lm: VideoLM,
        *,
        name: str = "VideoLM",
        mode: str | None = None,
        seed: int = 0,
        text: Sampling | None = None,
        video: dict[str, Any] | None = None,
        max_new_tokens: int = 256,
        autocast: torch.dtype | None = None,
        use_cache: bool = True,
    ) -> None:
        lm.processor.check_chats()
        if lm.vocabulary.num_actions:
            raise ModelError("this model draws videos from actions, which a conversation has none of: use generate")
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if seed < 0:
            raise ModelError(f"a seed is a number from 0 on, got {seed}")
        self.lm = lm
        self.name = name
        self.seed = seed
        self.text = Sampling(top_k=1) if text is None else text
        self.max_new_tokens = max_new_tokens
        self.set_drawing(mode, **(video or {}))
        self._way = Way(autocast=autocast, use_cache=use_cache)
        self._ends = sorted({lm.processor.end_of_turn_id, *end_ids(lm.model, lm.tokenizer)})
        self._allowed = self._allowed_ids()
        self._events: Iterator[Event] | None = None
        self._turns: list[Turn] = []
        self._answer: list[Segment] | None = None
        self.clear()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said, without what was forgotten."""
        return tuple(self._turns)

    def set_drawing(self, mode: str | None, **settings: Any) -> None:
        """From now on draw videos in ``mode``, with these settings; :class:`ModelError` for what the model cannot do.

        A model that was trained to draw none answers with text alone.
        """
        draws = bool(self.lm.settings.sampling) or mode is not None or settings  # of none it says so
        sampling = only_one(self.lm.sampling_for(mode), **settings) if draws else None
        if sampling is not None and sampling.guided:
            self.lm.check_guidance()
        self.sampling: Sampling | None = sampling

    def clear(self) -> None:
        """Forget all that was said."""
        self.load(())

    def load(self, turns: Sequence[Turn]) -> None:
        """Go on from these turns, in place of what was said."""
        roles = [turn.role for turn in turns]
        if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
            raise ModelError(
                f"a conversation goes on after the assistant's turn, user and assistant by turns; got {roles}"
            )
        loaded = [replace(turn, segments=tuple(map(self._with_codes, turn.segments))) for turn in turns]
        self._close()
        self._turns = loaded
        self.forgotten = 0
        """How many of the oldest turns have gone since the conversation began."""
        self._runner: Runner | None = None
        self._read: list[int] = []

    def say(self, segments: Sequence[Segment]) -> Iterator[Event]:
        """Say something, and follow the answer; it is part of the conversation when the last event has come.

        Whoever stops in the middle keeps what was said until then. Raises :class:`ModelError`, with the conversation as
        it was before, for what does not fit the context even alone.
        """
        # Encoded once: the codes are what the model reads.
        turn = Turn("user", tuple(map(self._with_codes, segments)))
        if not turn.segments:
            raise ModelError("there is nothing to answer: say something, or show a video")
        self._close()
        return self._begin_answer([*self._turns, turn])

    def take(self, said: Sequence[Segment], answer: Sequence[Segment]) -> int:
        """Take something as said, and this as the model's answer; how many of the oldest turns are forgotten."""
        self._close()
        user, assistant = (tuple(map(self._with_codes, segments)) for segments in (said, answer))
        return self._set_turns([*self._turns, Turn("user", user), Turn("assistant", assistant)])

    def take_answer(self, answer: Sequence[Segment]) -> int:
        """Take this as the answer in place of what the model said last; how many turns are forgotten."""
        self._close()
        if not self._turns:
            raise ModelError("there is no answer yet to replace")
        return self._set_turns([*self._turns[:-1], Turn("assistant", tuple(map(self._with_codes, answer)))])

    def retry(self, *, seed: int | None = None) -> Iterator[Event]:
        """Answer once more what was said last, with another seed (None: the next)."""
        self._close()
        if not self._turns:
            raise ModelError("there is no answer yet to try again")
        events = self._begin_answer(self._turns[:-1])
        self.seed = self.seed + 1 if seed is None else seed
        return events

    def document(self) -> Document:
        """All that was said and is being said, as the model reads it."""
        writer = DocumentWriter(self.lm.template, self.lm.layout)
        turns, answer = list(self._turns), self._answer
        if answer is not None:
            turns.append(Turn("assistant", tuple(answer)))
        self.lm.processor.write_turns(writer, turns, open_last=answer is not None)
        return writer.finish()

    def _set_turns(self, turns: list[Turn], room: int = 0) -> int:
        """Go on from ``turns``, with room for so many ids; how many were forgotten. What cannot be read, or does not
        fit, raises and changes nothing."""
        before, self._turns = self._turns, turns
        try:
            return self._make_room(room)
        except TokvidError:
            self._turns = before
            raise

    def _begin_answer(self, turns: list[Turn]) -> Iterator[Event]:
        """Answer the last of ``turns``."""
        self._events = self._answering(self._set_turns(turns, self._reserved_text()))
        return self._events

    def _close(self) -> None:
        """End an answer under way where it is; one that nobody has followed is empty."""
        if isinstance(self._events, Generator):
            self._events.close()
        self._events = None
        if self._turns and self._turns[-1].role == "user":
            self._turns.append(Turn("assistant", ()))

    def _answering(self, forgotten: int) -> Iterator[Event]:
        self._answer = []
        try:
            if forgotten:
                yield Forgotten(forgotten)
            yield from self._speak()
        finally:
            self._turns.append(Turn("assistant", tuple(self._answer)))
            self._answer = None

    def _speak(self) -> Iterator[Event]:
        """Text, id by id, and videos, until the turn ends."""
        assert self._answer is not None
        said: list[int] = []  # ids of the text that is the last segment of the answer
        told = 0
        features = self._features()
        for step in range(self.max_new_tokens):
            token = self._next_id(features, step)
            if token in self._ends:
                return
            if token == self.lm.vocabulary.open_id:
                said, told = [], 0
                yield from self._draw()
                features = self._features()
                continue
            said.append(token)
            text = self.lm.processor.decode_text(said)
            whole = text.rstrip(_REPLACEMENT)
            if len(said) > 1 and self._answer and isinstance(self._answer[-1], TextSegment):
                self._answer.pop()
            self._answer.append(TextSegment(whole))
            if len(whole) > told:
                yield Said(whole[told:])
                told = len(whole)
            if self._is_full():
                forgotten = self._make_room(1)
                if forgotten:
                    yield Forgotten(forgotten)
                features = self._features()
            else:
                features = self._feed(token)

    def _next_id(self, features: Tensor, step: int) -> int:
        assert self._runner is not None
        with sampling_from(self.lm.model, self._way.autocast):
            logits = self._runner.logits(features[:, -1], 0, len(self._allowed))
            logits = logits.masked_fill(~self._allowed.to(logits.device), float("-inf"))
            counters = torch.tensor(len(self._turns)), torch.tensor(step), torch.tensor(_TURN_NOISE)
            noise = uniform(self.seed, *counters).reshape(1).to(logits.device)
            return int(draw(logits, noise, self.text))

    def _draw(self) -> Iterator[Event]:
        """Draw a video, and read it."""
        lm, sampling = self.lm, self.sampling
        assert self._answer is not None and sampling is not None
        grid, num_frames = self._size()
        header = VideoHeader(grid=grid, mode=sampling.mode, fps=lm.settings.fps)
        forgotten = self._make_room(lm.template.length(header) + 1)
        if forgotten:
            yield Forgotten(forgotten)
        self._features()
        assert self._runner is not None
        canvas = Canvas.build(lm.template, lm.layout, header, 1)
        with sampling_from(lm.model, self._way.autocast):
            self._runner.make_room(lm.template.length(header))
            rows = ChatRows(
                self._runner, lm, header, read=len(self._read), guided=sampling.guided, room=len(canvas), way=self._way
            )
        sampling = replace(sampling, seed=self.seed)
        sample = self._count_drawn()
        try:
            for frame, ids in self._stepped(
                SAMPLERS[sampling.mode](rows, canvas, lm.vocabulary, sampling, torch.tensor([sample]))
            ):
                last = ids
                yield Drawing(frame + 1, grid.t)
        finally:
            self._runner.rewind(len(self._read))
        codes = lm.processor.decode_codes(last[:, canvas.is_code], grid)
        with torch.inference_mode():
            frames = lm.codec.decode(codes.to(codec_device(lm.codec)), num_frames=num_frames).cpu()
        said = [segment.text for segment in self._answer if isinstance(segment, TextSegment)]
        segment = VideoSegment(
            codes=codes,
            frames=frames,
            num_frames=num_frames,
            fps=lm.settings.fps,
            caption=" ".join(said) or None,
            made_by=made_by(
                lm, name=self.name, model=self._model_id, sampling=sampling, prompt=self._read, sample=sample
            ),
        )
        self._answer.append(segment)
        yield Shown(segment)

    @functools.cached_property
    def _model_id(self) -> str:
        return model_id(self.lm)

    def _count_drawn(self) -> int:
        """How many videos the assistant has shown: the number of the next one, for its noise."""
        segments = [segment for turn in self._turns if turn.role == "assistant" for segment in turn.segments]
        return sum(isinstance(segment, VideoSegment) for segment in [*segments, *(self._answer or ())])

    def _stepped(self, sampler: Iterator[Item]) -> Iterator[Item]:
        """What a sampler yields, with the model as samplers want it inside each step, and as it was between them."""
        while True:
            with sampling_from(self.lm.model, self._way.autocast):
                try:
                    item = next(sampler)
                except StopIteration:
                    return
            yield item

    def _feed(self, token: int) -> Tensor:
        """Read the id that was drawn last; its features ``[1,1,...]``."""
        assert self._runner is not None
        with sampling_from(self.lm.model, self._way.autocast):
            self._runner.make_room(1)
            place = self._runner.place_ids(text_place(torch.tensor([[len(self._read)]])))
            features = self._runner.feed(torch.tensor([[token]]), place)
        self._read.append(token)
        return features

    def _is_full(self) -> bool:
        limit = context_of(self.lm.model)
        return limit is not None and len(self._read) + 2 > limit  # this id, and the end of the turn

    def _features(self) -> Tensor:
        """Read what of the conversation has not been read; the features ``[1,1,...]`` of the last id."""
        document = self.document()
        ids: list[int] = document.ids.tolist()
        if self._runner is None:
            return self._begin(document)
        same = np.asarray(ids[: len(self._read)]) == np.asarray(self._read[: len(ids)])
        common = min(int(same.cumprod().sum()), len(ids) - 1)  # what is read last is needed
        del self._read[common:]  # first: whoever is interrupted below has read no more than this
        with sampling_from(self.lm.model, self._way.autocast):
            self._runner.rewind(common)
            self._runner.make_room(len(ids) - common)
            features = self._runner.feed(
                torch.tensor(ids[common:])[None], self._runner.place_ids(_coordinates(document, common))
            )
        self._read = ids
        return features[:, -1:]

    def _begin(self, document: Document) -> Tensor:
        with sampling_from(self.lm.model, self._way.autocast):
            self._runner = Runner(
                self.lm.model, self.lm.head, [document], _ROOM, positions=self.lm.positions, way=self._way
            )
            features = self._runner.prefill()
        self._read = document.ids.tolist()
        return features

    def _make_room(self, count: int) -> int:
        """Forget the oldest turns until ``count`` more ids fit the context; how many were forgotten."""
        limit = context_of(self.lm.model)
        open_turns = 1 if self._turns and self._turns[-1].role == "user" else 0
        turns, forgotten = list(self._turns), 0
        while (needed := len(self.document()) + 1 + count) > (needed if limit is None else limit):
            if len(self._turns) - open_turns < 2:
                self._turns = turns
                raise ModelError(
                    f"what was said last and the answer need {needed} positions, but the model's context has {limit}:"
                    " say less, or show fewer or shorter videos"
                )
            del self._turns[:2]
            forgotten += 2
        self.forgotten += forgotten
        return forgotten

    def _reserved_text(self) -> int:
        """Ids that an answer has room for at its beginning."""
        limit = context_of(self.lm.model)
        return self.max_new_tokens if limit is None else min(self.max_new_tokens, max(1, limit // 16))

    def _size(self) -> tuple[Any, int]:
        """The grid and the number of frames of a video to draw: as the model was trained, else as that shown last."""
        settings = self.lm.settings
        sizes = (settings.num_frames, settings.height, settings.width)
        if None not in sizes:
            return self.lm.size_of([], *sizes)
        for turn in reversed(self._turns):
            for segment in reversed(turn.segments):
                if isinstance(segment, VideoSegment) and segment.codes is not None:
                    h, w = segment.codes.shape[3:]
                    stride = self.lm.codec.spatial_stride
                    return self.lm.size_of([], self.lm.processor.num_frames_of(segment), h * stride, w * stride)
        raise ModelError(
            "this model was trained on clips of several sizes and would draw one, but none was shown to take the size"
            " from: show a video first"
        )

    def _with_codes(self, segment: Segment) -> Segment:
        if isinstance(segment, TextSegment) or segment.codes is not None:
            return segment
        return replace(
            segment,
            codes=self.lm.processor.codes_of(segment),
            num_frames=self.lm.processor.num_frames_of(segment),
        )

    def _allowed_ids(self) -> Tensor:
        """What may be drawn as the next id of text: text, the end, and that a video opens; bool ``[columns]``."""
        vocabulary = self.lm.vocabulary
        opens = [vocabulary.open_id] if self.sampling is not None else []
        allowed = torch.zeros(max(vocabulary.text_size - 1, *self._ends, *opens) + 1, dtype=torch.bool)
        allowed[: vocabulary.text_size] = True
        # Those of the text tokenizer (bos, padding) are no words.
        allowed[[token for token in self.lm.tokenizer.all_special_ids if token < len(allowed)]] = False
        allowed[[*self._ends, *opens]] = True
        return allowed


def _coordinates(document: Document, start: int) -> Coordinates:
    """Where the ids of a document stand from ``start`` on, as one row."""
    columns = (document.index, document.cell, document.start, document.content)
    index, cell, first, content = (torch.from_numpy(column[start:])[None] for column in columns)
    return Coordinates(index=index, cell=cell, start=first, is_content=content)
