"""Of several candidates the one that its caption fits best: what is counted, what stays, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.lm.test_samplers import build
from tests.lm.tiny import build_model, build_tokenizer
from tokvid.config import from_mapping
from tokvid.errors import ConfigError, ModelError
from tokvid_lm import TextSegment, VideoLM, VideoSegment, generation
from tokvid_lm.candidates import caption_ids, caption_nats
from tokvid_lm.samplers.runner import PLAIN
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.training_config import LMRecipe
from tokvid_lm.video_settings import VideoSettings

SIZE: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16}
CAPTIONS = ("abc", "d", "efgh")


def with_settings(**changes: Any) -> VideoLM:
    base = build()
    settings = replace(base.settings, captions=True, **changes)
    return VideoLM(base.model, base.tokenizer, base.vocabulary, base.codec, settings=settings)


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return with_settings()


def many_candidates() -> VideoLM:
    return with_settings(sampling=tuple(replace(each, candidates=3) for each in build().settings.sampling))


def drawn(lm: VideoLM, captions: Sequence[str], **options: Any) -> list[VideoSegment]:
    found = lm.generate([[TextSegment(caption)] for caption in captions], **(SIZE | options))
    return [clip for clip in found if isinstance(clip, VideoSegment)]


def codes_of(clip: Any) -> torch.Tensor:
    assert isinstance(clip, VideoSegment) and clip.codes is not None
    return clip.codes


def nats_of(lm: VideoLM, clips: list[VideoSegment], captions: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    ids = [lm.processor.encode_text(caption) for caption in captions]
    return caption_nats(lm, clips, ids, batch_size=batch_size, way=PLAIN)


@torch.inference_mode()
def test_nats_of_a_caption_are_those_of_the_whole_document(lm: VideoLM) -> None:
    clips = drawn(lm, CAPTIONS)
    nats = nats_of(lm, clips, CAPTIONS)
    for clip, caption, found in zip(clips, CAPTIONS, nats.tolist(), strict=True):
        ids = lm.processor.encode([clip, TextSegment(caption)])
        asked = len(caption) + 1  # one id a byte, and the end
        logits = lm.model(input_ids=ids[None]).logits[0, -asked - 1 : -1, : lm.vocabulary.text_size]
        expected = torch.nn.functional.cross_entropy(logits, ids[-asked:], reduction="sum")
        assert found == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(nats_of(lm, clips, CAPTIONS, batch_size=1), nats, rtol=1e-5)


def test_a_head_that_is_not_plain_and_a_text_tokenizer_without_an_end(lm: VideoLM) -> None:
    clips, without = drawn(lm, CAPTIONS), with_settings()
    nats = nats_of(lm, clips, CAPTIONS)
    without.__dict__["head"] = None
    assert torch.allclose(nats_of(without, clips, CAPTIONS), nats, rtol=1e-5)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    endless = VideoLM.extend(build_model("llama"), codec=lm.codec, tokenizer=tokenizer)
    endless.settings = lm.settings
    assert bool((nats_of(endless, clips, CAPTIONS) < nats).all())
    mixed = endless.generate([[TextSegment("abc")], [TextSegment("d")]], candidates=2, **SIZE)
    assert len(mixed) == 2


@pytest.mark.parametrize("mode", ["next_token", "maskgit", "frame"])
def test_the_likeliest_of_all_stays(lm: VideoLM, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[torch.Tensor], torch.Tensor]] = []

    def spied(lm: VideoLM, clips: Sequence[VideoSegment], *args: Any, **options: Any) -> torch.Tensor:
        nats = caption_nats(lm, clips, *args, **options)
        seen.append(([codes_of(clip) for clip in clips], nats))
        return nats

    monkeypatch.setattr(generation, "caption_nats", spied)
    chosen = drawn(lm, CAPTIONS, mode=mode, candidates=4, num_return_sequences=2, guidance_scale=2.0, seed=4)
    ((clips, nats),) = seen
    assert len(clips) == 4 * len(chosen) == 24
    alone = drawn(lm, CAPTIONS, mode=mode, num_return_sequences=2, guidance_scale=2.0, seed=4)
    places = []
    for row, clip in enumerate(chosen):
        run = slice(4 * row, 4 * row + 4)
        places.append(int(nats[run].argmin()))
        assert torch.equal(codes_of(clip), clips[run][places[-1]])
        # The first is the only one of before, whatever stands before it in the batch; the others are not.
        assert torch.equal(clips[run][0], codes_of(alone[row]))
        assert len({tuple(codes.flatten().tolist()) for codes in clips[run]}) == 4
    assert len(set(places)) > 1, "always the same place: the choice does nothing"
    # Whatever else is in the batch.
    for size in (1, 5):
        again = drawn(
            lm,
            CAPTIONS,
            mode=mode,
            candidates=4,
            num_return_sequences=2,
            guidance_scale=2.0,
            seed=4,
            batch_size=size,
        )
        assert all(torch.equal(codes_of(clip), codes_of(same)) for clip, same in zip(chosen, again, strict=True))


def test_what_has_no_caption_is_drawn_once_where_the_settings_ask_for_more() -> None:
    many = many_candidates()
    (clip,) = drawn(many, ["abc"])
    prompts: list[list[Any]] = [[], [TextSegment("abc")], [TextSegment(" ")], [clip, TextSegment("abc")]]
    steps: list[tuple[int, int]] = []
    mixed = many.generate(prompts, progress=lambda *at: steps.append(at), **SIZE)
    assert steps == [(6, 6)] and len(mixed) == 4
    alone = with_settings().generate(prompts, **SIZE)
    for number in (0, 2, 3):
        assert torch.equal(codes_of(mixed[number]), codes_of(alone[number]))
    for number in (0, 2, 3):
        with pytest.raises(ModelError, match="prompt 2 of 2 is empty or not text alone: use candidates 1"):
            many.generate([[TextSegment("abc")], prompts[number]], candidates=3, **SIZE)


def test_texts_are_judged_as_they_were_read(lm: VideoLM) -> None:
    assert caption_ids(lm, [TextSegment("ab"), TextSegment("cd")]) == lm.processor.encode_text("abcd")
    assert caption_ids(lm, []) == caption_ids(lm, [TextSegment(""), TextSegment("")]) == []


def test_what_is_known_has_candidates_too(lm: VideoLM) -> None:
    (clip,) = drawn(lm, ["abc"])
    known = torch.zeros(codes_of(clip).shape[2:], dtype=torch.bool)
    known[0] = True
    given = replace(clip, frames=None, known=known)
    steps: list[tuple[int, int]] = []
    (one,) = lm.generate(
        [TextSegment("abc"), given], mode="maskgit", candidates=3, progress=lambda *at: steps.append(at)
    )
    assert steps == [(3, 3)]
    assert torch.equal(codes_of(one)[:, :, 0], codes_of(clip)[:, :, 0])


def test_a_stream_has_one_whatever_the_settings_say(lm: VideoLM) -> None:
    many, (alone,) = many_candidates(), drawn(lm, ["abc"], seed=4)
    assert torch.equal(codes_of(drawn(many, ["abc"], seed=4)[0]), codes_of(drawn(lm, ["abc"], candidates=3, seed=4)[0]))
    streamed = torch.cat(list(many.stream([TextSegment("abc")], seed=4, **SIZE)), dim=2)
    assert alone.frames is not None and torch.allclose(streamed, alone.frames, atol=1e-5)


def test_refusals(lm: VideoLM) -> None:
    abc = [TextSegment("abc")]
    with pytest.raises(ModelError, match="not trained to caption: use candidates 1"):
        build().generate(abc, candidates=2, **SIZE)
    with pytest.raises(ModelError, match="which this model was not trained to write: use 1"):
        VideoSettings(sampling=(Sampling(candidates=2),))
    with pytest.raises(ModelError, match="candidates must be at least 1, got 0"):
        lm.generate(abc, candidates=0, **SIZE)
    with pytest.raises(ModelError, match="candidates cannot be used to generate text"):
        lm.generate(abc, output="text", candidates=2)
    with pytest.raises(ModelError, match="the only candidate, got candidates 2"):
        next(lm.stream([TextSegment("abc")], candidates=2, **SIZE))
    entry = {"mode": "next_token", "candidates": 2}
    recipe = {"task": "lm", "codec": "preset:tiny", "output": "x", "evaluation": {"sampling": [entry]}}
    with pytest.raises(ConfigError, match="candidates in the mode next_token"):
        from_mapping(LMRecipe, recipe, where="recipe")
    trained = recipe | {"training": {"mixture": [{"objective": "next_token"}, {"objective": "caption"}]}}
    assert from_mapping(LMRecipe, trained, where="recipe").evaluation.sampling[0].candidates == 2
