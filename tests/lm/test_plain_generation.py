"""``model.generate`` of transformers draws what we draw: greedy, in fp32, without guidance, from the same prompt.

With our logits processor the ids are ours, one for one. Without it they are ours until the likeliest id of all is one
that a video cannot have there; how often that is the test prints (``pytest -s``), for it depends on the weights.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from tests.lm.tiny import FAMILIES, build_model, build_tokenizer
from tokvid.grid import Grid
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.generation import split_request, stream_ids
from tokvid_lm.grammar import Grammar, GrammarLogitsProcessor
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import VideoHeader
from tokvid_tokenizers import load_codec

GRID = Grid(t=3, h=2, w=3)
FRAMES = 9
HEADER = VideoHeader(grid=GRID)
TEXTS = ("abcde", "i", "a bird")


@functools.cache
def build(family: str, template: str = "rows") -> VideoLM:
    """A model whose text may go on and on: nothing ends but the video."""
    lm = VideoLM.extend(
        build_model(family), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), template=template
    )
    lm.model.generation_config.eos_token_id = None
    return lm


def ours(lm: VideoLM, texts: tuple[str, ...]) -> Tensor:
    """Whole videos that our sampler draws, header and end included, ``[rows,n]``."""
    requests = [split_request([TextSegment(text)], lm) for text in texts]
    samples = torch.arange(len(texts))
    *_, (_, code_ids) = stream_ids(lm, requests, Sampling(top_k=1), GRID, FRAMES, fps=None, samples=samples)
    return lm.template.build(code_ids, HEADER)


def plain(lm: VideoLM, texts: tuple[str, ...], **options: Any) -> Tensor:
    """The same by ``model.generate``, prompts padded on the left."""
    header = lm.template.header(HEADER)
    prompts = [[*lm.document([TextSegment(text)]).ids.tolist(), *header] for text in texts]
    width = max(map(len, prompts))
    ids = torch.tensor([[lm.pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    count = lm.template.length(HEADER) - len(header)
    drawn = lm.model.generate(  # type: ignore[operator,unused-ignore]
        ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=lm.pad_id, **options
    )
    assert isinstance(drawn, Tensor)
    return drawn[:, width - len(header) :]


def processor(lm: VideoLM, prompt_length: int) -> LogitsProcessorList:
    grammar = Grammar.video(lm.vocabulary, lm.template, lm.layout, HEADER)
    header = len(lm.template.header(HEADER))
    return LogitsProcessorList([GrammarLogitsProcessor(grammar, prompt_length, first_step=header)])


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one", "padded"])
@pytest.mark.parametrize("template", ["rows", "bare"])
@pytest.mark.parametrize("family", FAMILIES)
def test_under_the_grammar_generate_draws_our_ids(family: str, template: str, texts: tuple[str, ...]) -> None:
    """Mistral beyond its window too, and prompts of several lengths in a batch."""
    lm = build(family, template)
    longest = max(len(lm.document([TextSegment(text)])) for text in texts)
    length = longest + len(lm.template.header(HEADER))
    assert torch.equal(plain(lm, texts, logits_processor=processor(lm, length)), ours(lm, texts))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_it_generate_draws_our_ids_until_the_first_illegal_one(family: str) -> None:
    lm = build(family, "bare")
    expected, found = ours(lm, TEXTS[:1])[0], plain(lm, TEXTS[:1])[0]
    start = len(lm.template.header(HEADER))
    allowed = Grammar.video(lm.vocabulary, lm.template, lm.layout, HEADER)
    likeliest = free_choices(lm, expected, start)
    legal = allowed.masks[allowed.program[start:], likeliest]
    print(f"\n{family}: the likeliest id of all is illegal at {int((~legal).sum())} of {len(legal)} places")
    same = int(legal.int().cumprod(0).sum())
    assert torch.equal(found[start : start + same], expected[start : start + same])
    assert same == len(legal) or int(found[start + same]) == int(likeliest[same]) != int(expected[start + same])


def test_some_model_is_legal_for_a_while_by_itself() -> None:
    """Else the test above would compare nothing."""
    lengths = []
    for family in FAMILIES:
        lm = build(family, "bare")
        same = (ours(lm, TEXTS[:1]) == plain(lm, TEXTS[:1]))[0].int().cumprod(0).sum()
        lengths.append(int(same) - len(lm.template.header(HEADER)))
    assert max(lengths) >= 2


@torch.no_grad()
def free_choices(lm: VideoLM, video: Tensor, start: int) -> Tensor:
    """Of each place of ``video`` ``[n]`` from ``start`` on the likeliest of all ids, after ours before it."""
    prompt = torch.tensor(lm.document([TextSegment(TEXTS[0])]).ids)
    logits = lm.model(input_ids=torch.cat([prompt, video])[None]).logits[0]
    likeliest: Tensor = logits[len(prompt) + start - 1 : -1].argmax(1)
    return likeliest
