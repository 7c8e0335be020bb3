"""Of several candidates the one that its caption fits best: what is counted, what stays, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.lm.test_samplers import build
from tokvid.config import from_mapping
from tokvid.errors import ConfigError, ModelError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.candidates import caption_nats
from tokvid_lm.training_config import LMRecipe

SIZE: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16}
CAPTIONS = ("abc", "d", "efgh")


def with_settings(**changes: Any) -> VideoLM:
    base = build()
    settings = replace(base.settings, captions=True, **changes)
    return VideoLM(base.model, base.tokenizer, base.vocabulary, base.codec, settings=settings)


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return with_settings()


def prompts(*captions: str) -> list[list[TextSegment]]:
    return [[TextSegment(caption)] for caption in captions]


@torch.inference_mode()
def test_nats_of_a_caption_are_those_of_the_whole_document(lm: VideoLM) -> None:
    clips = lm.generate(prompts(*CAPTIONS), **SIZE)
    nats = caption_nats(lm, clips, CAPTIONS)  # type: ignore[arg-type]
    for clip, caption, found in zip(clips, CAPTIONS, nats.tolist(), strict=True):
        assert isinstance(clip, VideoSegment)
        ids = lm.processor.encode([clip, TextSegment(caption)])
        asked = len(caption) + 1  # one id a byte, and the end
        logits = lm.model(input_ids=ids[None]).logits[0, -asked - 1 : -1, : lm.vocabulary.text_size]
        expected = torch.nn.functional.cross_entropy(logits, ids[-asked:], reduction="sum")
        assert found == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(caption_nats(lm, clips, CAPTIONS, batch_size=1), nats, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["next_token", "maskgit", "frame"])
def test_the_likeliest_stays_and_the_first_is_the_only_one_of_before(lm: VideoLM, mode: str) -> None:
    chosen = lm.generate(prompts(*CAPTIONS), mode=mode, candidates=3, seed=4, **SIZE)
    alone = lm.generate(prompts(*CAPTIONS), mode=mode, seed=4, **SIZE)
    others = 0
    for caption, clip, first in zip(CAPTIONS, chosen, alone, strict=True):
        assert isinstance(clip, VideoSegment) and isinstance(first, VideoSegment)
        best, plain = caption_nats(lm, [clip, first], [caption, caption]).tolist()
        assert best <= plain + 1e-4
        others += not torch.equal(clip.codes, first.codes)  # type: ignore[arg-type]
    assert others, "three candidates of three captions, and always the first: the choice does nothing"
    again = [
        lm.generate(prompts(*CAPTIONS), mode=mode, candidates=3, seed=4, batch_size=size, **SIZE) for size in (1, 4)
    ]
    for same in again:
        for clip, found in zip(chosen, same, strict=True):
            assert torch.equal(clip.codes, found.codes)  # type: ignore[union-attr,arg-type]


def test_what_has_no_caption_is_drawn_once(lm: VideoLM) -> None:
    steps: list[tuple[int, int]] = []
    mixed = lm.generate([[], [TextSegment("abc")]], candidates=3, progress=lambda *at: steps.append(at), **SIZE)
    assert steps == [(4, 4)] and len(mixed) == 2
    alone = lm.generate([[]], **SIZE)
    assert torch.equal(mixed[0].codes, alone[0].codes)  # type: ignore[union-attr,arg-type]


def test_copies_and_what_is_known_have_candidates_too(lm: VideoLM) -> None:
    (clip,) = lm.generate(prompts("abc"), **SIZE)
    assert isinstance(clip, VideoSegment) and clip.codes is not None
    known = torch.zeros(clip.codes.shape[2:], dtype=torch.bool)
    known[0] = True
    given = replace(clip, frames=None, known=known)
    both = lm.generate([[TextSegment("abc"), given]], mode="maskgit", candidates=2, num_return_sequences=2)
    assert len(both) == 2
    for copy in both:
        assert torch.equal(copy.codes[:, :, 0], clip.codes[:, :, 0])  # type: ignore[union-attr,index]


def test_a_stream_and_a_model_that_is_asked_to_draw_more_by_its_settings(lm: VideoLM) -> None:
    many = with_settings(sampling=tuple(replace(sampling, candidates=3) for sampling in lm.settings.sampling))
    chosen, (alone,) = many.generate(prompts("abc"), seed=4, **SIZE), lm.generate(prompts("abc"), seed=4, **SIZE)
    best = lm.generate(prompts("abc"), candidates=3, seed=4, **SIZE)
    assert torch.equal(chosen[0].codes, best[0].codes)  # type: ignore[union-attr,arg-type]
    streamed = torch.cat(list(many.stream([TextSegment("abc")], seed=4, **SIZE)), dim=2)
    assert torch.allclose(streamed, alone.frames, atol=1e-5)  # type: ignore[union-attr,arg-type]


def test_refusals(lm: VideoLM) -> None:
    with pytest.raises(ModelError, match="not trained to caption: use candidates 1"):
        build().generate(prompts("abc"), candidates=2, **SIZE)
    with pytest.raises(ModelError, match="candidates must be at least 1, got 0"):
        lm.generate(prompts("abc"), candidates=0, **SIZE)
    with pytest.raises(ModelError, match="candidates cannot be used to generate text"):
        lm.generate(prompts("abc"), output="text", candidates=2)
    with pytest.raises(ModelError, match="the only candidate: leave candidates out"):
        next(lm.stream([TextSegment("abc")], candidates=2, **SIZE))
    entry = {"mode": "next_token", "candidates": 2}
    recipe = {"task": "lm", "codec": "preset:tiny", "output": "x", "evaluation": {"sampling": [entry]}}
    with pytest.raises(ConfigError, match="candidates in the mode next_token"):
        from_mapping(LMRecipe, recipe, where="recipe")
    trained = recipe | {"training": {"mixture": [{"objective": "next_token"}, {"objective": "caption"}]}}
    assert from_mapping(LMRecipe, trained, where="recipe").evaluation.sampling[0].candidates == 2
