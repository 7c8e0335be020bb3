"""How many ids documents will take: captions and sizes say so before a codec or a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokvid.grid import Grid
from tokvid_lm.extend import text_tokenizer_size
from tokvid_lm.layout import RasterLayout
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.templates import build_template
from tokvid_lm.text_tokenizer import train_text_tokenizer
from tokvid_lm.training_config import LMRecipe, ScratchModelConfig
from tokvid_lm.vocabulary import SPECIAL_TOKENS, VideoVocabulary
from tokvid_tokenizers import VideoCodec


@dataclass(frozen=True, kw_only=True)
class LongestDocument:
    """The document of caption number ``number`` takes ``ids`` ids, ``caption_ids`` of them for the caption."""

    number: int
    ids: int
    caption_ids: int


def longest_document(
    recipe: LMRecipe, codec: VideoCodec, captions: Sequence[str], others: Sequence[str], grid: Grid
) -> LongestDocument:
    """The longest of the documents of ``captions`` and then ``others``, each with a video of ``grid``.

    The text tokenizer is learned from ``captions``, as it will be for a model from scratch (which the recipe must ask
    for); ``codec`` may be an untrained one of the same configuration.
    """
    assert isinstance(recipe.model, ScratchModelConfig), "an extended model brings its own text tokenizer"
    tokenizer = train_text_tokenizer(captions, recipe.model.text_vocab_size)
    size = text_tokenizer_size(tokenizer)
    vocabulary = VideoVocabulary(
        text_size=size,
        special={name: size + number for number, name in enumerate(SPECIAL_TOKENS)},
        code_offset=size + len(SPECIAL_TOKENS),
        codebook_size=codec.codebook_size,
        num_codebooks=codec.num_codebooks,
    )
    template = build_template(recipe.template, vocabulary)
    processor = VideoProcessor(tokenizer, codec, vocabulary, template, RasterLayout())
    lengths = [len(processor.encode_text(caption)) for caption in (*captions, *others)]
    number = max(range(len(lengths)), key=lengths.__getitem__)
    ends = len(processor.start_ids()) + (tokenizer.eos_token_id is not None)
    return LongestDocument(
        number=number, ids=ends + lengths[number] + template.length(grid), caption_ids=lengths[number]
    )
