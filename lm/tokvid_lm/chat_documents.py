"""Dialogues as documents to learn from: loss on what the assistant says, and on nothing else.

A dialogue is encoded once, its clips as codes and its texts as ids. In the next-token mode a document is a whole
dialogue. In a masked mode it ends with a video that the assistant draws, if it draws one; the videos before it stand as
they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.data.dialogue import DialogueSource, DialogueTurn
from tokvid.errors import DataError
from tokvid.grid import Grid
from tokvid_lm.code_clips import encode_clips
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.mixture import Mixture, MixtureConfig, hide
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.templates import VideoHeader
from tokvid_lm.vocabulary import Mode
from tokvid_tokenizers import VideoCodec

_BATCH = 32  # dialogues whose clips are encoded at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedDialogues:
    """Dialogues whose clips are codes ``[M,K,t,h,w]``, one after the other; those of dialogue n begin at
    ``first[n]``."""

    turns: tuple[tuple[DialogueTurn, ...], ...]
    codes: Tensor
    first: npt.NDArray[np.int64]
    fps: float

    def __len__(self) -> int:
        return len(self.turns)

    def texts(self) -> list[str]:
        """All that is said."""
        return [piece for turns in self.turns for turn in turns for piece in turn.pieces if isinstance(piece, str)]

    def codes_of(self, dialogue: int, clip: int) -> Tensor:
        """The codes of a clip of a dialogue, int64 ``[1,K,t,h,w]``."""
        number = int(self.first[dialogue]) + clip
        return self.codes[number : number + 1].long()


def code_dialogues(
    codec: VideoCodec, source: DialogueSource, *, progress: Callable[[int, int], None] | None = None
) -> CodedDialogues:
    """Encode the clips of all dialogues, a few dialogues at a time; ``progress(done, total)`` follows them."""
    turns: list[tuple[DialogueTurn, ...]] = []
    parts: list[Tensor] = []
    counts: list[int] = []
    for start in range(0, len(source), _BATCH):
        loaded = [source.load(number) for number in range(start, min(start + _BATCH, len(source)))]
        turns += [dialogue.turns for dialogue in loaded]
        counts += [len(dialogue.clips) for dialogue in loaded]
        clips = [clip for dialogue in loaded for clip in dialogue.clips]
        if clips:
            parts.append(encode_clips(codec, np.stack(clips)))
        if progress is not None:
            progress(len(turns), len(source))
    if not parts:
        raise DataError("the dialogues have no clips: a video language model learns nothing from them")
    return CodedDialogues(
        turns=tuple(turns), codes=torch.cat(parts), first=np.cumsum([0, *counts[:-1]]), fps=source.fps
    )


class ChatDocuments:
    """Dialogue after dialogue as :class:`~tokvid_lm.document.Document`; every turn through them is a new order."""

    def __init__(self, processor: VideoProcessor, dialogues: CodedDialogues, *, seed: int = 0) -> None:
        processor.check_chats()
        self.processor = processor
        self.dialogues = dialogues
        self.seed = seed
        t, h, w = dialogues.codes.shape[2:]
        grid = Grid(t=t, h=h, w=w)
        self._header = VideoHeader(grid=grid, fps=dialogues.fps)
        self._frame = processor.layout.cells(grid, processor.vocabulary.slots)[:, 0].numpy()
        self._copies = grid.t * len(processor.template.frame(grid))  # ids behind a video that is drawn frame by frame
        self._texts: dict[str, npt.NDArray[np.int32]] = {}
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.dialogues)

    def length(self, mixture: Mixture, sample: int, *, shuffle: bool) -> int:
        """``len(self.document(...))``, without writing it."""
        number, mode, cut = self._shown(mixture, sample, shuffle=shuffle)
        return self._length(number, mode, cut)

    def document(self, mixture: Mixture, sample: int, *, shuffle: bool) -> Document:
        """What ``sample`` shows."""
        number, mode, cut = self._shown(mixture, sample, shuffle=shuffle)
        processor = self.processor
        writer = DocumentWriter(processor.template, processor.layout)
        writer.text(processor.start_ids(), scored=False)
        for turn in self.dialogues.turns[number]:
            answers = turn.role == "assistant"
            writer.text([processor.role_id(turn.role)], scored=False)
            for piece in turn.pieces:
                if isinstance(piece, str):
                    writer.text(self._text(piece).tolist(), scored=answers)
                elif piece == cut:
                    self._write_masked(writer, number, piece, mixture, sample)
                    return writer.finish()
                else:
                    self._write_video(writer, number, piece, drawn=answers, asked=answers and mode == "next_token")
            writer.text([processor.end_of_turn_id], scored=answers)
        return writer.finish()

    def check_context(self, positions: int | None, *, pack: int, entries: Sequence[MixtureConfig]) -> None:
        """Raise :class:`DataError` unless every dialogue fits ``positions`` ids, and a packed row (0: none)."""
        lengths = [self._length(number, "next_token", None) for number in range(len(self))]
        longest = max(lengths)
        if positions is not None and longest > positions:
            raise DataError(
                f"dialogue {lengths.index(longest)} takes {longest} ids but the model reads {positions}: take a model"
                " with more positions, or shorter dialogues"
            )
        modes = {entry.mode for entry in entries if entry.objective == "chat"} - {"next_token"}
        masked = [
            self._length(number, mode, cut)
            for mode in modes
            for number in range(len(self))
            for cut in self._drawn(number)
        ]
        written = max([longest, *masked])
        if pack and written > pack:
            raise DataError(f"a dialogue takes {written} ids, a packed row holds {pack}: raise training.pack")

    def digest(self) -> str:
        """64 hexadecimal digits that differ where the dialogues do."""
        coded = self.dialogues
        found = hashlib.sha256(coded.codes.numpy().tobytes())
        found.update(repr((list(coded.codes.shape), coded.fps, coded.turns)).encode())
        return found.hexdigest()

    def _text(self, text: str) -> npt.NDArray[np.int32]:
        if text not in self._texts:
            self._texts[text] = np.array(self.processor.encode_text(text), np.int32)
        return self._texts[text]

    def _shown(self, mixture: Mixture, sample: int, *, shuffle: bool) -> tuple[int, Mode, int | None]:
        """The dialogue, the mode of what it draws, and the clip with which it ends (None: its own end)."""
        turn, place = divmod(sample, len(self))
        if shuffle:
            if self._order is None or self._order[0] != turn:
                self._order = (turn, np.random.default_rng([self.seed, turn]).permutation(len(self)))
            place = int(self._order[1][place])
        mode = mixture.entry(sample).mode
        drawn = self._drawn(place)
        if mode == "next_token" or not drawn:
            return place, "next_token", None
        return place, mode, drawn[int(mixture.cut_noise(sample) * len(drawn))]

    def _drawn(self, number: int) -> list[int]:
        """The clips that the assistant draws."""
        turns = (turn for turn in self.dialogues.turns[number] if turn.role == "assistant")
        return [piece for turn in turns for piece in turn.pieces if isinstance(piece, int)]

    def _length(self, number: int, mode: Mode, cut: int | None) -> int:
        length = len(self.processor.start_ids())
        template = self.processor.template
        for turn in self.dialogues.turns[number]:
            length += 1
            for piece in turn.pieces:
                length += len(self._text(piece)) if isinstance(piece, str) else template.length(self._header)
                if piece == cut and not isinstance(piece, str):
                    return length + (self._copies if mode == "frame" else 0)
            length += 1
        return length

    def _write_video(self, writer: DocumentWriter, number: int, clip: int, *, drawn: bool, asked: bool) -> None:
        code_ids = self.processor.code_ids(self.dialogues.codes_of(number, clip))[0].numpy()
        writer.video(code_ids, self._header, asked=np.full(len(code_ids), asked), open_asked=drawn)

    def _write_masked(self, writer: DocumentWriter, number: int, clip: int, mixture: Mixture, sample: int) -> None:
        """The video with which a dialogue ends."""
        entry, grid = mixture.entry(sample), self._header.grid
        code_ids = self.processor.code_ids(self.dialogues.codes_of(number, clip))[0].numpy()
        noise = mixture.mask_noise(sample, len(code_ids) + grid.t)
        groups = self._frame if entry.mode == "frame" else None
        asked = hide(np.ones(len(code_ids), bool), groups, entry.schedule, noise)
        header = VideoHeader(grid=grid, mode=entry.mode, fps=self._header.fps)
        writer.video(code_ids, header, asked=asked, open_asked=True)
