"""Captioned clips as documents of ids, and batches of them; nothing is left to compute when a batch is due.

Which document a sample is, and whether it loses its caption, is a function of (seed, sample number) alone: a
resumed run sees what the interrupted one would have seen. Nothing here knows a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokvid.errors import DataError, ShapeError
from tokvid_lm.code_clips import CodedClips
from tokvid_lm.noise import uniform
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.templates import CODE
from tokvid_lm.training_config import LMTrainingConfig

IGNORED = -100
"""The label of a position that is not scored, as Hugging Face writes it."""

_Ids = npt.NDArray[np.int32]
_CHUNK = 1024
_DROP_STREAM = 0x50D0  # parts the noise that drops captions from the sampler's of the same seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """N documents ``start | caption | header | body | close | end`` of one grid, as ids.

    ``captions`` holds all captions' ids end to end, number n from ``bounds[n]`` to ``bounds[n+1]``; ``body`` is
    ``[N,L]``, codes and separators. The other pieces are the same for all documents.
    """

    start: _Ids
    captions: _Ids
    bounds: npt.NDArray[np.int64]
    header: _Ids
    body: _Ids
    is_code: npt.NDArray[np.bool_]
    """``[L]``: where the body holds codes; elsewhere it holds separators, which the grammar forces."""
    close: _Ids
    end: _Ids
    pad_id: int
    frame_length: int
    """Places of the body that one latent frame takes."""
    names: tuple[str, ...] = ()
    """Of the clips, where they are known."""

    @classmethod
    def build(cls, processor: VideoProcessor, clips: CodedClips) -> Documents:
        """Every clip as ``processor.encode([TextSegment(caption), VideoSegment(codes=...)])`` would write it."""
        grid = clips.grid
        header = processor.template.header(grid)
        tokenizer = processor.tokenizer
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or [0])[0]
        texts = [processor.encode_text(caption) for caption in clips.captions]
        videos = torch.cat([processor.encode_codes(part.long()).int() for part in clips.codes.split(_CHUNK)])
        body = processor.template.body(grid)
        first, last = len(header), len(header) + len(body)
        return cls(
            start=np.array(processor.start_ids(), np.int32),
            captions=np.array([token for text in texts for token in text], np.int32),
            bounds=np.cumsum([0, *map(len, texts)]),
            header=np.array(header, np.int32),
            body=videos[:, first:last].contiguous().numpy(),
            is_code=(body == CODE).numpy(),
            close=videos[0, last:].numpy().copy(),
            end=np.array(end, np.int32),
            pad_id=int(pad),
            frame_length=len(body) // grid.t,
            names=clips.names,
        )

    def __len__(self) -> int:
        return len(self.body)

    def caption(self, number: int) -> _Ids:
        """The ids of one caption."""
        return self.captions[self.bounds[number] : self.bounds[number + 1]]

    def ids(self, number: int) -> _Ids:
        """The whole document ``number``."""
        return np.concatenate([self.start, self.caption(number), self.header, self.body[number], self.close, self.end])

    @property
    def longest(self) -> int:
        """Ids of the longest document."""
        fixed = len(self.start) + len(self.header) + self.body.shape[1] + len(self.close) + len(self.end)
        return int(fixed + np.diff(self.bounds).max())

    def check_context(self, positions: int | None) -> None:
        """Raise :class:`DataError` naming the longest caption unless every document fits ``positions`` ids."""
        if positions is not None and self.longest > positions:
            number = int(np.diff(self.bounds).argmax())
            of = f"the caption of {self.names[number]}" if self.names else f"caption {number}"
            raise DataError(
                f"a document takes {self.longest} ids but the model reads {positions}: shorten {of}"
                f" ({len(self.caption(number))} ids), lower the clips' size or number of frames, or take a model with"
                " more positions"
            )

    def batch(
        self,
        numbers: Sequence[int],
        *,
        dropped: Sequence[bool] | None = None,
        score_text: bool = False,
        latent_frames: int | None = None,
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, int64 ``[B,n]``, of documents ``numbers``; the ``dropped`` lose their caption.

        Labels are not shifted; what is not scored is :data:`IGNORED`: padding, and what the grammar forces anyway
        (start, header, close), and with ``score_text`` false all but codes. Columns after the last scored one are cut
        off: they teach nothing. With ``latent_frames`` documents end after so many. There is no attention mask:
        padding stands on the right, where no causal model looks.
        """
        if not len(numbers):
            raise ShapeError("a batch needs at least one document, got none")
        texts = [self.caption(n) for n in numbers]
        if dropped is not None:
            texts = [text[:0] if gone else text for text, gone in zip(texts, dropped, strict=True)]
        frames = len(self.is_code) // self.frame_length
        if latent_frames is not None and not 1 <= latent_frames <= frames:
            raise ShapeError(
                f"these documents have {frames} latent frames, so 1 to {frames} can be seen, got {latent_frames}"
            )
        is_code = self.is_code if latent_frames is None else self.is_code[: latent_frames * self.frame_length]
        whole = len(is_code) == len(self.is_code)
        tail = [self.close, self.end] if score_text and whole else []
        # Nothing after the last code is scored, unless the text is.
        shown = len(is_code) if tail else int(is_code.nonzero()[0].max()) + 1
        is_code = is_code[:shown]
        fixed = len(self.start) + len(self.header) + shown + sum(map(len, tail))
        width = fixed + max(map(len, texts))
        input_ids = np.full((len(texts), width), self.pad_id, np.int64)
        labels = np.full((len(texts), width), IGNORED, np.int64)
        ends = [(self.close, False), (self.end, score_text)] if tail else []
        for row, target, number, text in zip(input_ids, labels, numbers, texts, strict=True):
            place = 0
            pieces: list[tuple[_Ids, bool | npt.NDArray[np.bool_]]] = [(self.start, False), (text, score_text)]
            for piece, scored in (*pieces, (self.header, False), (self.body[number, :shown], is_code), *ends):
                span = slice(place, place + len(piece))
                row[span] = piece
                target[span] = np.where(scored, piece, IGNORED)
                place += len(piece)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one forward pass, and how many latent frames of them are seen (None: all)."""

    samples: range
    latent_frames: int | None


class BatchPlan(Dataset[Batch]):
    """Every batch of a run in order: those of the curriculum's stages, then those of whole documents.

    ``passes`` is the number of batches in one step, over all devices.
    """

    def __init__(self, config: LMTrainingConfig, *, passes: int) -> None:
        rest = config.steps - sum(stage.steps for stage in config.curriculum)
        stages = [(stage.steps, stage.batch_size, stage.latent_frames) for stage in config.curriculum]
        self._stages: list[tuple[int, int, int | None]] = [*stages, (rest, config.batch_size, None)]
        self._passes = passes
        self._count = config.steps * passes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._count:
            raise IndexError(f"the run has batches 0 to {self._count - 1}, got {index}")
        first = 0
        for steps, size, latent_frames in self._stages:
            count = steps * self._passes
            if index < count:
                start = first + index * size
                return Batch(samples=range(start, start + size), latent_frames=latent_frames)
            index -= count
            first += count * size
        raise AssertionError("the stages add up to all batches")


class Collator:
    """A planned batch to tensors: every pass over the documents is a new seeded order, captions drop by chance."""

    def __init__(self, documents: Documents, *, seed: int, prompt_drop: float, score_text: bool) -> None:
        self.documents = documents
        self.seed = seed
        self.prompt_drop = prompt_drop
        self.score_text = score_text
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The tensors of one batch (the Trainer hands it over as a list of one); see :meth:`Documents.batch`."""
        (batch,) = batches
        return self.documents.batch(
            [self.document_of(sample) for sample in batch.samples],
            dropped=self.dropped(batch.samples),
            score_text=self.score_text,
            latent_frames=batch.latent_frames,
        )

    def document_of(self, sample: int) -> int:
        """The document that sample ``sample`` shows."""
        turn, place = divmod(sample, len(self.documents))
        if turn not in self._orders:
            # A batch reaches into two passes at most.
            self._orders = {n: order for n, order in self._orders.items() if n == turn - 1}
            self._orders[turn] = np.random.default_rng([self.seed, turn]).permutation(len(self.documents))
        return int(self._orders[turn][place])

    def dropped(self, samples: Sequence[int]) -> list[bool]:
        """Which of these samples lose their caption."""
        noise = uniform(self.seed, torch.tensor(_DROP_STREAM), torch.tensor(list(samples)))
        return (noise < self.prompt_drop).tolist()
