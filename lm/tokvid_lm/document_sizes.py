"""How long the documents of a recipe will be, and what is asked of them, before there are clips or a text tokenizer.

They are written as the run will write them, of one clip without content and captions of a given length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokvid.data.dialogues import open_dialogues
from tokvid.errors import DataError
from tokvid.grid import Grid
from tokvid_lm.chat_documents import ChatDocuments, CodedDialogues
from tokvid_lm.code_source import CodeSource, ShardClips
from tokvid_lm.document import IGNORED, TEXT
from tokvid_lm.documents import Documents
from tokvid_lm.layout import build_layout
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.templates import VideoHeader, build_template
from tokvid_lm.training_config import LMRecipe, ShardDataConfig
from tokvid_lm.vocabulary import VideoVocabulary
from tokvid_tokenizers import VideoCodec

_SAMPLES = 32
"""Documents of each share of the mixture whose ids are counted."""


@dataclass(frozen=True, kw_only=True)
class DocumentSizes:
    """Of the documents of a recipe: ids in the ``mean`` and of the ``longest``, labels that are text and are codes.

    ``longest_read`` counts no copies of frames, which stand where what they are copies of stands; ``video`` is a whole
    clip in the mode next_token.
    """

    mean: float
    longest: int
    longest_read: int
    text_labels: float
    code_labels: float
    video: int


def document_sizes(
    recipe: LMRecipe,
    clips: CodeSource,
    codec: VideoCodec,
    vocabulary: VideoVocabulary,
    *,
    caption_ids: int,
    latent_frames: int | None = None,
) -> DocumentSizes:
    """Of documents of ``clips`` whose captions have ``caption_ids`` ids and which show the first ``latent_frames``."""
    processor = _SizedProcessor(recipe, codec, vocabulary, caption_ids)
    shares = np.array([entry.share for entry in recipe.training.mixture])
    rows = [_entry_sizes(recipe, processor, clips, entry, latent_frames) for entry in recipe.training.mixture]
    mean, longest, read, text, codes = np.array(rows).T
    weighted = [float((column * shares).sum() / shares.sum()) for column in (mean, text, codes)]
    actions = codec.temporal_stride if clips.has_actions(0) else 0
    return DocumentSizes(
        mean=weighted[0],
        longest=int(longest.max()),
        longest_read=int(read.max()),
        text_labels=weighted[1],
        code_labels=weighted[2],
        video=processor.template.length(VideoHeader(grid=clips.grid_of(0), fps=clips.fps_of(0), actions=actions)),
    )


def _entry_sizes(
    recipe: LMRecipe, processor: VideoProcessor, clips: CodeSource, entry: MixtureConfig, latent_frames: int | None
) -> tuple[float, ...]:
    """The first five of :class:`DocumentSizes`, of the documents of one share."""
    if entry.file:
        ids = entry.passage + 1
        return ids, ids, ids, entry.passage, 0.0
    training = recipe.training
    documents = Documents(
        processor,
        clips,
        mixture=(entry,),
        prompt_drop=training.prompt_drop,
        score_text=training.score_text,
        seed=recipe.seed,
        dialogues=_planned_dialogues(recipe, processor) if entry.objective == "chat" else None,
    )
    written = [documents.document(sample, latent_frames) for sample in range(_SAMPLES)]
    lengths = [len(document) for document in written]
    text = [int(((document.labels != IGNORED) & (document.frame == TEXT)).sum()) for document in written]
    codes = [int(((document.labels != IGNORED) & (document.frame != TEXT)).sum()) for document in written]
    read = max(int(document.index.max()) + 1 for document in written)
    return float(np.mean(lengths)), max(lengths), read, float(np.mean(text)), float(np.mean(codes))


def _planned_dialogues(recipe: LMRecipe, processor: VideoProcessor) -> ChatDocuments:
    """The first dialogues of a recipe, whose clips are all code 0."""
    assert recipe.dialogues is not None, "a recipe with a share of the objective chat has dialogues"
    source, codec = open_dialogues(recipe.dialogues, "train"), processor.codec
    turns = [source.load(number).turns for number in range(min(_SAMPLES, len(source)))]
    counts = [sum(isinstance(piece, int) for turn in each for piece in turn.pieces) for each in turns]
    grid = codec.grid_for(source.num_frames, *source.size)
    codes = torch.zeros(sum(counts), codec.num_codebooks, grid.t, grid.h, grid.w, dtype=torch.int64)
    coded = CodedDialogues(turns=tuple(turns), codes=codes, first=np.cumsum([0, *counts[:-1]]), fps=source.fps)
    return ChatDocuments(processor, coded, seed=recipe.seed)


class _SizedProcessor(VideoProcessor):
    """Writes documents as a model's processor does, every caption so many ids long."""

    def __init__(self, recipe: LMRecipe, codec: VideoCodec, vocabulary: VideoVocabulary, caption_ids: int) -> None:
        template, layout = build_template(recipe.template, vocabulary), build_layout(recipe.layout)
        super().__init__(None, codec, vocabulary, template, layout)  # type: ignore[arg-type]
        self._caption = [0] * caption_ids

    def encode_text(self, text: str) -> list[int]:
        return self._caption

    def start_ids(self) -> list[int]:
        return [0]

    def end_ids(self) -> list[int]:
        return [0]


def planned_clips(recipe: LMRecipe, codec: VideoCodec) -> CodeSource:
    """The clips of shards that are there, or one of the recipe's size without content."""
    if not isinstance(recipe.data, ShardDataConfig):
        return _OneClip(recipe, codec)
    if not Path(recipe.data.path).is_dir():
        raise DataError(
            f"there is no folder {recipe.data.path} of code shards yet: name the codec's recipe, --codec=codec/web-256,"
            " or say what its clips will be, --data='{kind: folder, path: videos, size: [256, 256], num_frames: 17,"
            " fps: 24}'"
        )
    return ShardClips(recipe.data.path, "train", codec_id=codec.codec_id)


class _OneClip(CodeSource):
    """A clip of the recipe's size, of codes that are all 0."""

    captions = ("",)
    names = ()

    def __init__(self, recipe: LMRecipe, codec: VideoCodec) -> None:
        assert not isinstance(recipe.data, ShardDataConfig), "shards say what their clips are"
        self._data, self._codec, self._actions = recipe.data, codec, bool(recipe.num_actions)
        self.codebook_size = codec.codebook_size
        self._grid = codec.grid_for(recipe.data.num_frames, *recipe.data.size)

    @property
    def size(self) -> tuple[int, int, int]:
        return (self._data.num_frames, *self._data.size)

    @property
    def fps(self) -> float:
        return self._data.fps

    @property
    def latent_frames(self) -> int:
        return self._grid.t

    def grid_of(self, number: int) -> Grid:
        return self._grid

    def codes_of(self, number: int) -> Tensor:
        grid = self._grid
        return torch.zeros(self._codec.num_codebooks, grid.t, grid.h, grid.w, dtype=torch.int64)

    def fps_of(self, number: int) -> float:
        return self._data.fps

    def num_frames_of(self, number: int) -> int:
        return self._data.num_frames

    def has_actions(self, number: int) -> bool:
        return self._actions

    def actions_of(self, number: int) -> Tensor:
        return torch.zeros(self._data.num_frames - 1, dtype=torch.int64)

    def digest(self) -> str:
        return ""
