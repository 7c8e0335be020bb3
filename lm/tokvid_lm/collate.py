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

IGNORED = -100
"""The label of a position that is not scored, as Hugging Face writes it."""

_Ids = npt.NDArray[np.int32]
_CHUNK = 1024
_DROP_STREAM = 0x50D0  # parts the noise that drops captions from the sampler's of the same seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """N documents ``start | caption | header | codes | close | end`` of one grid, as ids.

    ``captions`` holds all captions' ids end to end, number n from ``bounds[n]`` to ``bounds[n+1]``; ``codes`` is
    ``[N,S]``. The other pieces are the same for all documents.
    """

    start: _Ids
    captions: _Ids
    bounds: npt.NDArray[np.int64]
    header: _Ids
    codes: _Ids
    close: _Ids
    end: _Ids
    pad_id: int

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
        first, last = len(header), len(header) + grid.cells * processor.vocabulary.num_codebooks
        return cls(
            start=np.array(processor.start_ids(), np.int32),
            captions=np.array([token for text in texts for token in text], np.int32),
            bounds=np.cumsum([0, *map(len, texts)]),
            header=np.array(header, np.int32),
            codes=videos[:, first:last].contiguous().numpy(),
            close=videos[0, last:].numpy().copy(),
            end=np.array(end, np.int32),
            pad_id=int(pad),
        )

    def __len__(self) -> int:
        return len(self.codes)

    def caption(self, number: int) -> _Ids:
        """The ids of one caption."""
        return self.captions[self.bounds[number] : self.bounds[number + 1]]

    def ids(self, number: int) -> _Ids:
        """The whole document ``number``."""
        return np.concatenate([self.start, self.caption(number), self.header, self.codes[number], self.close, self.end])

    @property
    def longest(self) -> int:
        """Ids of the longest document."""
        fixed = len(self.start) + len(self.header) + self.codes.shape[1] + len(self.close) + len(self.end)
        return int(fixed + np.diff(self.bounds).max())

    def check_context(self, positions: int | None) -> None:
        """Raise :class:`DataError` naming the longest caption unless every document fits ``positions`` ids."""
        if positions is not None and self.longest > positions:
            number = int(np.diff(self.bounds).argmax())
            raise DataError(
                f"a document takes {self.longest} ids but the model reads {positions}: shorten caption {number}"
                f" ({len(self.caption(number))} ids), lower the clips' size or number of frames, or take a model with"
                " more positions"
            )

    def batch(
        self, numbers: Sequence[int], *, dropped: Sequence[bool] | None = None, score_text: bool = False
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, int64 ``[B,n]``, of documents ``numbers``; the ``dropped`` lose their caption.

        Labels are not shifted; what is not scored is :data:`IGNORED`: padding, and what the grammar forces anyway
        (start, header, close), and with ``score_text`` false all but codes. Columns after the last scored one are cut
        off: they teach nothing. There is no attention mask: padding stands on the right, where no causal model looks.
        """
        if not len(numbers):
            raise ShapeError("a batch needs at least one document, got none")
        texts = [self.caption(n) for n in numbers]
        if dropped is not None:
            texts = [text[:0] if gone else text for text, gone in zip(texts, dropped, strict=True)]
        tail = [self.close, self.end] if score_text else []
        fixed = len(self.start) + len(self.header) + self.codes.shape[1] + sum(map(len, tail))
        width = fixed + max(map(len, texts))
        input_ids = np.full((len(texts), width), self.pad_id, np.int64)
        labels = np.full((len(texts), width), IGNORED, np.int64)
        for row, target, number, text in zip(input_ids, labels, numbers, texts, strict=True):
            place = 0
            pieces = ((self.start, False), (text, score_text), (self.header, False), (self.codes[number], True))
            for piece, scored in (*pieces, (self.close, False), (self.end, score_text))[: 4 + len(tail)]:
                row[place : place + len(piece)] = piece
                if scored:
                    target[place : place + len(piece)] = piece
                place += len(piece)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


class SampleNumbers(Dataset[int]):
    """The numbers 0 to ``count``-1: a run's samples, in the order in which they are used."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Collator:
    """Sample numbers to batches: each pass over the documents is a new seeded order, captions are dropped by chance."""

    def __init__(self, documents: Documents, *, seed: int, prompt_drop: float, score_text: bool) -> None:
        self.documents = documents
        self.seed = seed
        self.prompt_drop = prompt_drop
        self.score_text = score_text
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def __call__(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these samples; see :meth:`Documents.batch`."""
        numbers = [self.document_of(sample) for sample in samples]
        return self.documents.batch(numbers, dropped=self.dropped(samples), score_text=self.score_text)

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
