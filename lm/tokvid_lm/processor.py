"""Segments to ids and back: ``[bos] text <|video|>...<|/video|> text ... [eos]``.

Text goes through the text tokenizer with all special tokens switched off, so a caption that spells ``<|video|>``
is just text. Codes never become strings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid, check_num_frames
from tokvid_lm.layout import RasterLayout
from tokvid_lm.segments import Segment, TextSegment, VideoSegment, split
from tokvid_lm.templates import BareTemplate
from tokvid_lm.vocabulary import VideoVocabulary
from tokvid_tokenizers import VideoCodec


class VideoProcessor:
    """Knows the text tokenizer, the codec, and how a sequence is written; knows no language model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        codec: VideoCodec,
        vocabulary: VideoVocabulary,
        template: BareTemplate,
        layout: RasterLayout,
    ) -> None:
        self.tokenizer = tokenizer
        self.codec = codec
        self.vocabulary = vocabulary
        self.template = template
        self.layout = layout

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text, all below ``text_size``; special tokens spelled in it stay text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if ids and max(ids) >= self.vocabulary.text_size:
            raise ModelError(
                f"the text tokenizer turned text into the special id {max(ids)}; it cannot keep special tokens"
                " apart from text: use its fast version"
            )
        return ids

    def encode_codes(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[B,K,t,h,w]`` to the ids of whole videos ``[B, template.length(grid)]``."""
        if codes.ndim != 5 or codes.shape[1] != self.vocabulary.num_codebooks:
            raise ShapeError(f"expected codes [B,{self.vocabulary.num_codebooks},t,h,w], got {list(codes.shape)}")
        grid = Grid(t=codes.shape[2], h=codes.shape[3], w=codes.shape[4])
        books = self.layout.codebooks(grid, self.vocabulary.num_codebooks)
        return self.template.build(self.vocabulary.codes_to_ids(self.layout.flatten(codes), books), grid)

    def decode_codes(self, code_ids: Tensor, grid: Grid) -> Tensor:
        """Ids of codes ``[B,S]`` (no header, no end) to codes ``[B,K,t,h,w]``."""
        count = self.vocabulary.num_codebooks
        sequence = self.vocabulary.ids_to_codes(code_ids, self.layout.codebooks(grid, count))
        return self.layout.unflatten(sequence, grid, count)

    def codes_of(self, segment: VideoSegment) -> Tensor:
        """The codes ``[1,K,t,h,w]`` of a segment, on the CPU; frames are encoded where the codec is."""
        if segment.codes is not None:
            if segment.num_frames is not None:
                check_num_frames(segment.num_frames, segment.codes.shape[2], self.codec.temporal_stride)
            return segment.codes.cpu()
        assert segment.frames is not None
        with torch.inference_mode():
            codes = self.codec.encode(segment.frames.to(codec_device(self.codec)))
        return codes.cpu()

    def encode(self, segments: Sequence[Segment], *, end: bool = True) -> Tensor:
        """The ids, int64 ``[n]``, of a document: bos, its segments, and eos if ``end``.

        A text tokenizer without bos or eos writes none. A video with unknown cells raises :class:`ModelError`.
        """
        pieces = [torch.tensor(self.start_ids(), dtype=torch.int64)]
        for segment in segments:
            if isinstance(segment, TextSegment):
                pieces.append(torch.tensor(self.encode_text(segment.text), dtype=torch.int64))
            elif isinstance(segment, VideoSegment):
                if segment.known is not None and not bool(segment.known.all()):
                    raise ModelError("next-token models read whole videos: known must be None or all true")
                pieces.append(self.encode_codes(self.codes_of(segment))[0])
            else:
                raise ModelError(f"a prompt is a list of TextSegment and VideoSegment, got {type(segment).__name__}")
        if end and self.tokenizer.eos_token_id is not None:
            pieces.append(torch.tensor([self.tokenizer.eos_token_id], dtype=torch.int64))
        return torch.cat(pieces)

    def encode_prompt(self, segments: Sequence[Segment], grid: Grid | None = None) -> Tensor:
        """A document that goes on: with a ``grid``, up to and including the header of the video to come."""
        ids = self.encode(segments, end=False)
        if grid is None:
            return ids
        return torch.cat([ids, torch.tensor(self.template.header(grid), dtype=torch.int64)])

    def null_prompt(self, grid: Grid) -> Tensor:
        """What guidance compares with: a prompt that says nothing but the header of the video."""
        return self.encode_prompt([], grid)

    def start_ids(self) -> list[int]:
        """The text tokenizer's bos, or nothing."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [int(bos)]

    def decode(self, ids: Tensor | Sequence[int]) -> list[Segment]:
        """The inverse of :meth:`encode`, videos as codes; bos, eos and padding vanish, empty texts too.

        Raises :class:`ModelError` for a malformed video.
        """
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        segments: list[Segment] = []
        for span in split(numbers, open_id=self.vocabulary.open_id, close_id=self.vocabulary.close_id):
            if span.is_video:
                grid, code_ids = self.template.parse(span.ids)
                segments.append(VideoSegment(codes=self.decode_codes(code_ids[None], grid)))
                continue
            text = self.decode_text(span.ids)
            if text:
                segments.append(TextSegment(text))
        return segments

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out. Raises :class:`ModelError` for a code outside a video."""
        stray = [token for token in ids if token >= self.vocabulary.code_offset]
        if stray:
            raise ModelError(f"id {stray[0]} is a code but stands outside a video")
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def codec_device(codec: VideoCodec) -> torch.device:
    """Where the codec's weights are."""
    return next(codec.parameters()).device
