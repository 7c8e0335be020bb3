"""Losses in nats, and clips drawn from captions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tests.lm.tiny import TEXT_SIZE, build_model, build_tokenizer
from tokvid.data.sprites import SpriteWorldConfig
from tokvid.data.sprites.oracle import Oracle
from tokvid.data.sprites.verdicts import judge_clips
from tokvid.errors import ShapeError
from tokvid_lm import VideoLM
from tokvid_lm.code_clips import CodedClips
from tokvid_lm.documents import Documents
from tokvid_lm.evaluation import (
    CodeLosses,
    DrawnClips,
    draw_clips,
    text_perplexity,
    unigram_entropy,
    validation_losses,
)
from tokvid_lm.mixture import MixtureConfig
from tokvid_tokenizers import VideoCodec


def test_the_unigram_entropy_is_the_mean_over_codebooks() -> None:
    codes = torch.zeros(8, 2, 1, 1, 1, dtype=torch.int16)
    codes[:, 1, 0, 0, 0] = torch.arange(8)
    clips = CodedClips(codes=codes, captions=("",) * 8, num_frames=1, height=8, width=8, codebook_size=64)
    assert unigram_entropy(clips) == pytest.approx(math.log(8) / 2)
    losses = CodeLosses(validation={"text": 9.0, "frame": 1.0}, unigram_entropy=4.0)
    assert losses.figures()["share_below_unigram"] == 0.75


def test_the_validation_loss_is_the_mean_over_codes_in_any_batch(video_lm: VideoLM) -> None:
    codes = torch.randint(0, video_lm.codec.codebook_size, (5, 1, 2, 2, 2), dtype=torch.int16)
    captions = ("a cat", "", "a ghost moves left", "b", "the car stays")
    clips = CodedClips(codes=codes, captions=captions, num_frames=5, height=16, width=16, codebook_size=1000)
    documents = Documents(video_lm.processor, clips, shuffle=False)
    expected = []
    vocabulary = video_lm.vocabulary
    with torch.no_grad():
        for number in range(5):
            ids = torch.from_numpy(documents.document(number).ids)
            logits = video_lm.model(ids[None]).logits[0, :-1]
            logits[:, : vocabulary.code_offset] = float("-inf")
            losses = F.cross_entropy(logits, ids[1:], reduction="none")
            expected.append(losses[ids[1:] >= vocabulary.code_offset])
    mean = float(torch.cat(expected).mean())
    for batch_size in (5, 2):
        found = validation_losses(video_lm, clips, (MixtureConfig(),), batch_size=batch_size)
        assert found == {"next_token": pytest.approx(mean, rel=1e-5)}
    every = (MixtureConfig(objective="maskgit"), MixtureConfig(objective="frame"), MixtureConfig(objective="caption"))
    one, other = (validation_losses(video_lm, clips, every, batch_size=size) for size in (2, 5))
    assert one.keys() == {"maskgit", "frame", "caption"} and one == pytest.approx(other, rel=1e-5)


def test_the_perplexity_of_a_text_is_that_before_the_model_was_extended(codec: VideoCodec) -> None:
    tokenizer, model = build_tokenizer(), build_model("llama")
    ids = tokenizer("It was the best of times, it was the worst of times.")["input_ids"]
    logits = model(torch.tensor([[256, *ids[:20]], [256, *ids[20:40]]])).logits[:, :-1].detach()
    expected = float(F.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[:40])).exp())

    def perplexity(model: PreTrainedModel, start: tuple[int, ...] = (256,)) -> float:
        return text_perplexity(model, ids, text_size=TEXT_SIZE, start=start, passage=20)

    assert perplexity(model) == pytest.approx(expected, rel=1e-5)
    lm = VideoLM.extend(model, codec=codec, tokenizer=tokenizer)
    lm.model.train()
    assert perplexity(lm.model) == pytest.approx(expected, rel=1e-5) and lm.model.training
    assert perplexity(lm.model, ()) != pytest.approx(expected, rel=1e-3), (
        "without a start the first id is not asked for"
    )
    with pytest.raises(ShapeError, match="a passage of 512 ids, got a text of 52"):
        text_perplexity(model, ids, text_size=TEXT_SIZE)


def test_clips_are_drawn_the_same_in_any_batch_and_judged(video_lm: VideoLM) -> None:
    captions = ["a lion moves left", "a ghost stays still", "an apple flies up"]

    def draw(batch_size: int) -> DrawnClips:
        return draw_clips(video_lm, captions, num_frames=5, height=16, width=16, batch_size=batch_size)

    drawn = draw(3)
    assert drawn.frames.shape == (3, 5, 16, 16, 3)
    assert (draw(2).frames == drawn.frames).all()
    judged = judge_clips(Oracle(SpriteWorldConfig(size=(16, 16), num_frames=5)), captions, drawn.frames)
    assert [len(judged.verdicts), len(judged.sights), judged.proportions["sprite"].count] == [3, 3, 3]
