"""Ids for turns in a model that was extended, and perhaps trained, without them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokvid_lm.chat_template import set_up_chat
from tokvid_lm.extend import add_special_tokens, text_tokenizer_size
from tokvid_lm.video_lm import VideoLM
from tokvid_lm.vocabulary import CHAT_TOKENS, VideoVocabulary


def with_chat(lm: VideoLM) -> VideoLM:
    """The same model with ids for turns; ``lm``, whose parts are changed, is not to be used any more."""
    vocabulary = insert_chat_tokens(lm.model, lm.tokenizer, lm.vocabulary)
    return VideoLM(
        lm.model,
        lm.tokenizer,
        vocabulary,
        lm.codec,
        template=lm.template.kind,
        layout=lm.layout.kind,
        positions=lm.positions.kind,
        settings=lm.settings,
    )


@torch.no_grad()
def insert_chat_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: VideoVocabulary
) -> VideoVocabulary:
    """Give ``model`` and ``tokenizer`` ids for turns, in place; the vocabulary that they then have.

    They come after the other special tokens. Where no row is free there the codes move up; all rows stay what they
    were, and a new one starts as the mean of those of the special tokens.
    """
    new = with_turns(vocabulary, text_tokenizer_size(tokenizer))
    added = add_special_tokens(tokenizer, text_tokenizer_size(tokenizer), CHAT_TOKENS)
    assert all(new.special[name] == token for name, token in added.items()), "a text tokenizer gives its next ids"
    before = [table.detach().clone() for table in tables(model)]
    model.resize_token_embeddings(new.total_size, mean_resizing=False)
    for table, rows in zip(tables(model), before, strict=True):
        table[: vocabulary.code_offset] = rows[: vocabulary.code_offset]
        table[new.code_offset :] = rows[vocabulary.code_offset :]
        table[sorted(added.values())] = rows[sorted(vocabulary.special.values())].float().mean(0).to(table)
    set_up_chat(model, tokenizer, new)
    return new


def with_turns(vocabulary: VideoVocabulary, start: int) -> VideoVocabulary:
    """``vocabulary`` with ids for turns from ``start`` on, the first that its text tokenizer has free."""
    return replace(
        vocabulary,
        special={**vocabulary.special, **{name: start + place for place, name in enumerate(CHAT_TOKENS)}},
        code_offset=max(vocabulary.code_offset, start + len(CHAT_TOKENS)),
    )


def tables(model: PreTrainedModel) -> list[Tensor]:
    """All that has a row an id: the embedding, an untied head, and the head's bias."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear), "it has been extended"
    found: list[Tensor] = [embedding.weight]
    if head.weight is not embedding.weight:
        found.append(head.weight)
    if head.bias is not None:
        found.append(head.bias)
    return found
