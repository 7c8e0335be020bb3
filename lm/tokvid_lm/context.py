"""How many ids documents will take: captions and sizes say so before a codec or a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokvid.grid import Grid
from tokvid_lm.extend import text_tokenizer_size
from tokvid_lm.layout import build_layout
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.templates import VideoHeader, build_template
from tokvid_lm.text_tokenizer import train_text_tokenizer
from tokvid_lm.training_config import LMRecipe, ScratchModelConfig
from tokvid_lm.vocabulary import VideoVocabulary, special_tokens
from tokvid_tokenizers import VideoCodec


@dataclass(frozen=True, kw_only=True)
class LongestDocument:
    """The document of caption number ``number`` takes ``ids`` ids, ``caption_ids`` of them for the caption."""

    number: int
    ids: int
    caption_ids: int


def longest_document(
    recipe: LMRecipe, codec: VideoCodec, captions: Sequence[str], others: Sequence[str], grid: Grid, fps: float
) -> LongestDocument:
    """The longest of the documents of ``captions`` and then ``others``, each with a video of ``grid``.

    The text tokenizer is learned from ``captions``, as it will be for a model from scratch (which the recipe must ask
    for); ``codec`` may be an untrained one of the same configuration.
    """
    assert isinstance(recipe.model, ScratchModelConfig), "an extended model brings its own text tokenizer"
    tokenizer = train_text_tokenizer(captions, recipe.model.text_vocab_size)
    size = text_tokenizer_size(tokenizer)
    names = special_tokens(recipe.num_actions, chat=recipe.chats)
    vocabulary = VideoVocabulary(
        text_size=size,
        special={name: size + number for number, name in enumerate(names)},
        code_offset=size + len(names),
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
        factors=recipe.factors,
    )
    template = build_template(recipe.template, vocabulary)
    processor = VideoProcessor(tokenizer, codec, vocabulary, template, build_layout(recipe.layout))
    lengths = [len(processor.encode_text(caption)) for caption in (*captions, *others)]
    number = max(range(len(lengths)), key=lengths.__getitem__)
    ends = len(processor.start_ids()) + (tokenizer.eos_token_id is not None)
    video = template.length(VideoHeader(grid=grid, fps=fps))
    return LongestDocument(number=number, ids=ends + lengths[number] + video, caption_ids=lengths[number])
