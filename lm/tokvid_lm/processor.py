"""Segments to ids and back: ``[bos] text <|video|>...<|/video|> text ... [eos]``.

Text goes through the text tokenizer with all special tokens switched off, so a caption that spells ``<|video|>``
is just text. Codes never become strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, Unpack

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid, check_num_frames, latent_frames
from tokvid.hub import HubOptions, local_folder
from tokvid_lm.continuous import is_continuous
from tokvid_lm.document import DocumentWriter
from tokvid_lm.layout import Layout, build_layout
from tokvid_lm.loading import load_saved_tokenizer
from tokvid_lm.segments import Role, Segment, TextSegment, Turn, VideoSegment, split
from tokvid_lm.templates import Template, VideoHeader, build_template
from tokvid_lm.video_lm_folder import read_facts, saved_codec, saved_vocabulary
from tokvid_lm.vocabulary import ASSISTANT, END_OF_TURN, USER, VideoVocabulary
from tokvid_tokenizers import VideoCodec


class VideoProcessor:
    """Knows the text tokenizer, the codec, and how a sequence is written; knows no language model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        codec: VideoCodec,
        vocabulary: VideoVocabulary,
        template: Template,
        layout: Layout,
    ) -> None:
        codec.check_causal("video language models")
        self.tokenizer = tokenizer
        self.codec = codec
        self.vocabulary = vocabulary
        self.template = template
        self.layout = layout

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub: Unpack[HubOptions]) -> Self:
        """That of a saved :class:`~tokvid_lm.VideoLM`, in a folder or as ``org/name`` on the Hub, without its model.

        Raises :class:`~tokvid.errors.CheckpointError` for a folder that holds no VideoLM, and a codec that is not the
        model's.
        """
        folder = local_folder(name, **hub)
        facts = read_facts(folder)
        vocabulary = saved_vocabulary(folder, facts)
        template, layout = build_template(facts["template"], vocabulary), build_layout(facts["layout"])
        return cls(load_saved_tokenizer(folder), saved_codec(folder, facts), vocabulary, template, layout)

    def __call__(self, prompt: Sequence[Segment]) -> dict[str, Tensor]:
        """What a plain causal model takes: the ``input_ids`` and ``attention_mask`` ``[1,n]`` of a prompt."""
        ids = self.encode_prompt(prompt)[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text, all below ``text_size``; special tokens spelled in it stay text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if ids and max(ids) >= self.vocabulary.text_size:
            raise ModelError(
                f"the text tokenizer turned text into the special id {max(ids)}; it cannot keep special tokens"
                " apart from text: use its fast version"
            )
        return ids

    def code_ids(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[B,K,t,h,w]`` to the sequence of their ids ``[B,S]``, without header or separators."""
        return self.layout.flatten(self.vocabulary.codes_to_ids(codes))

    def decode_codes(self, code_ids: Tensor, grid: Grid) -> Tensor:
        """The inverse of :meth:`code_ids`."""
        return self.vocabulary.ids_to_codes(self.layout.unflatten(code_ids, grid, self.vocabulary.slots))

    def action_ids(self, actions: Tensor, grid: Grid, num_frames: int) -> Tensor:
        """The ids of the actions ``[T-1]`` of a clip, int64 ``[(t-1)*temporal_stride]``.

        As many before each latent frame as it has frames. As the last group of frames is filled by repeating the last
        frame, so is its group of actions by repeating the last action.
        """
        stride = self.codec.temporal_stride
        if len(actions) != num_frames - 1 or latent_frames(num_frames, stride) != grid.t:
            raise ShapeError(
                f"a clip of {num_frames} frames has {num_frames - 1} actions, one from each frame to the next, got"
                f" {len(actions)}"
            )
        missing = (grid.t - 1) * stride - len(actions)
        filled = torch.cat([actions, actions[-1:].expand(missing)]) if missing else actions
        return self.vocabulary.action_ids(filled)

    def write(self, writer: DocumentWriter, segments: Sequence[Segment]) -> None:
        """Write a prompt: bos and its segments, videos in the next-token mode, which any causal model can read."""
        writer.text(self.start_ids(), scored=False)
        self._write_segments(writer, segments)

    def write_turns(self, writer: DocumentWriter, turns: Sequence[Turn], *, open_last: bool = False) -> None:
        """Write a conversation: bos, and of each turn who speaks, its segments and its end.

        With ``open_last`` the last turn goes on. :class:`ModelError` for a model that has no ids for turns.
        """
        writer.text(self.start_ids(), scored=False)
        for number, turn in enumerate(turns):
            writer.text([self.role_id(turn.role)], scored=False)
            self._write_segments(writer, turn.segments)
            if not open_last or number + 1 < len(turns):
                writer.text([self.end_of_turn_id], scored=False)

    def role_id(self, role: Role) -> int:
        """The id that begins a turn of ``role``."""
        self.check_chats()
        return self.vocabulary.special[USER if role == "user" else ASSISTANT]

    @property
    def end_of_turn_id(self) -> int:
        """The id that ends a turn."""
        self.check_chats()
        return self.vocabulary.special[END_OF_TURN]

    def check_chats(self) -> None:
        """Raise :class:`ModelError` unless the vocabulary has ids for turns, and videos are codes."""
        if is_continuous(self.codec):
            raise ModelError("a continuous model does not talk: its videos are latents, and conversations hold codes")
        if not self.vocabulary.chats:
            raise ModelError(
                "this model has no chat template: it was not trained to talk; train one on dialogues (tokvid train"
                " lm/sprites-chat), or extend one with chat=True"
            )

    def _write_segments(self, writer: DocumentWriter, segments: Sequence[Segment]) -> None:
        for segment in segments:
            if isinstance(segment, TextSegment):
                writer.text(self.encode_text(segment.text), scored=False)
            elif isinstance(segment, VideoSegment):
                self._write_video(writer, segment)
            else:
                raise ModelError(f"a prompt is a list of TextSegment and VideoSegment, got {type(segment).__name__}")

    def _write_video(self, writer: DocumentWriter, segment: VideoSegment) -> None:
        if is_continuous(self.codec):
            raise ModelError("a continuous model reads no videos in its prompt: describe what it is to draw in text")
        if segment.known is not None and not bool(segment.known.all()):
            raise ModelError(
                "a video with unknown cells can only be the last segment of a prompt, the one to draw: known must be"
                " None or all true elsewhere"
            )
        codes = self.codes_of(segment)
        grid = Grid(t=codes.shape[2], h=codes.shape[3], w=codes.shape[4])
        actions, count = None, 0
        if segment.actions is not None:
            actions = self.action_ids(segment.actions, grid, self.num_frames_of(segment)).numpy()
            count = self.codec.temporal_stride
        code_ids = self.code_ids(codes)[0].numpy()
        header = VideoHeader(grid=grid, fps=segment.fps, actions=count)
        writer.video(code_ids, header, asked=np.zeros(len(code_ids), bool), action_ids=actions)

    def num_frames_of(self, segment: VideoSegment) -> int:
        """The exact T of a segment."""
        if segment.frames is not None:
            return segment.frames.shape[2]
        assert segment.codes is not None
        return segment.num_frames or 1 + (segment.codes.shape[2] - 1) * self.codec.temporal_stride

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
        writer = DocumentWriter(self.template, self.layout)
        self.write(writer, segments)
        if end:
            writer.text(self.end_ids(), scored=False)
        return torch.from_numpy(writer.finish().ids)

    def encode_prompt(self, segments: Sequence[Segment], header: VideoHeader | None = None) -> Tensor:
        """A document that goes on: with a ``header``, up to and including that of the video to come."""
        ids = self.encode(segments, end=False)
        if header is None:
            return ids
        return torch.cat([ids, torch.tensor(self.template.header(header), dtype=torch.int64)])

    def start_ids(self) -> list[int]:
        """The text tokenizer's bos, or nothing."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [int(bos)]

    def end_ids(self) -> list[int]:
        """The text tokenizer's eos, or nothing."""
        eos = self.tokenizer.eos_token_id
        return [] if eos is None else [int(eos)]

    def decode(self, ids: Tensor | Sequence[int]) -> list[Segment]:
        """The inverse of :meth:`encode`, videos as codes; bos, eos and padding vanish, empty texts too.

        Raises :class:`ModelError` for a malformed video.
        """
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        segments: list[Segment] = []
        for span in split(numbers, open_id=self.vocabulary.open_id, close_id=self.vocabulary.close_id):
            if span.is_video:
                segments.append(self._decode_video(span.ids))
                continue
            text = self.decode_text(span.ids)
            if text:
                segments.append(TextSegment(text))
        return segments

    def _decode_video(self, ids: Sequence[int]) -> VideoSegment:
        parsed = self.template.parse(ids)
        actions: Tensor | None = None
        if parsed.header.actions:
            value_of = {int(token): action for action, token in enumerate(self.vocabulary.all_action_ids)}
            try:
                actions = torch.tensor([value_of[int(token)] for token in parsed.action_ids])
            except KeyError as error:
                raise ModelError(f"id {error} stands where a video has an action, and is none") from None
        codes = self.decode_codes(parsed.code_ids[None], parsed.header.grid)
        return VideoSegment(codes=codes, fps=parsed.header.fps, actions=actions)

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
