"""Eleven faults of released code of autoregressive video, each with what we do instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.grid import Grid
from tokvid.noise import uniform
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.documents import Documents
from tokvid_lm.generation import split_request, stream_ids
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.samplers.masked import _Refiner
from tokvid_lm.samplers.runner import Runner, Way
from tokvid_lm.samplers.sampling import Sampling, draw
from tokvid_lm.tasks import first_frames
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import load_codec

GRID = Grid(t=2, h=4, w=4)
SIZE: dict[str, Any] = {"num_frames": 5, "height": 32, "width": 32}
CAT = [TextSegment("a cat")]


@functools.cache
def build() -> VideoLM:
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    lm.settings = VideoSettings(sampling=tuple(Sampling(mode=mode, steps=6) for mode in MODES))
    return lm


def draw_ids(sampling: Sampling, **changes: Any) -> Tensor:
    lm = build()
    requests = [split_request(CAT, lm)]
    samples = torch.arange(1)
    states = list(stream_ids(lm, requests, sampling, GRID, 5, fps=None, samples=samples, way=Way(**changes)))
    return states[-1][1]


@pytest.fixture
def constant_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is sure of nothing: all codes are alike."""
    monkeypatch.setattr(
        Runner, "logits", lambda self, features, low, high: torch.zeros(*features.shape[:-1], high - low)
    )


def test_1_the_noise_of_the_choice_does_not_compound() -> None:
    """Show-o and Lumos multiply the running temperature: 4.5 falls to 0.8, 0.0015 and 8e-9 at these steps."""
    noise = [Sampling(choice_temperature=4.5).choice_noise(step / 50) for step in (12, 25, 37, 50)]
    assert noise == pytest.approx([3.42, 2.25, 1.17, 0.0])


def test_2_every_frame_begins_with_the_whole_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Lumos the temperature outlives the loop over frames and is 0 from the second frame on."""
    seen: list[float] = []
    plain = Sampling.choice_noise
    monkeypatch.setattr(Sampling, "choice_noise", lambda self, progress: seen.append(progress) or plain(self, progress))
    draw_ids(Sampling(mode="frame", steps=3))
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0] * 2)


def test_3_temperature_divides_logits_and_so_does_something() -> None:
    """1xgpt divides probabilities, which are then normalised again: any temperature gives one distribution."""
    logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(30_000, -1)
    noise = uniform(0, torch.arange(30_000))
    warm, cold = (draw(logits, noise, Sampling(temperature=t)).bincount() / 30_000 for t in (1.0, 0.25))
    assert torch.allclose(warm, torch.tensor([0.2, 0.3, 0.5]), atol=0.01)
    powers = torch.tensor([0.2, 0.3, 0.5]) ** 4
    assert torch.allclose(cold, powers / powers.sum(), atol=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_4_neither_the_mask_nor_text_is_ever_drawn(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer())
    with torch.no_grad():  # a head that wants everything but codes
        lm.model.get_output_embeddings().weight[: lm.vocabulary.code_offset] += 100.0
    lm.settings = build().settings
    (clip,) = lm.generate(CAT, mode=mode, temperature=2.0, **SIZE)
    assert isinstance(clip, VideoSegment) and clip.codes is not None and int(clip.codes.min()) >= 0


def test_5_the_choice_can_be_random_instead_of_copying_the_frame_before(constant_logits: None) -> None:
    """Taking the surest first copies what the frame before had; enough noise makes the order one of chance."""
    orders = []
    for seed in range(40):
        masked: list[Tensor] = []
        refiner_step(lambda mask, kept=masked: kept.append(mask), Sampling(mode="maskgit", steps=4, seed=seed))
        orders.append(masked[0])
    shares = torch.stack(orders).double().mean(0)
    shares = shares[shares > 0]  # of codes, not of what stands between them
    assert len(shares) == 32 and float(shares.std()) < 0.1, "no place is kept for its place"


def refiner_step(keep: Callable[[Tensor], None], sampling: Sampling) -> None:
    """Which places are still masked after each step of one video."""
    plain = _Refiner._draw

    def spy(refiner: _Refiner, places: slice, masked: Tensor, step: int, scales: Tensor) -> tuple[Tensor, Tensor]:
        if step:
            keep(masked[0].clone())
        return plain(refiner, places, masked, step, scales)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Refiner, "_draw", spy)
        draw_ids(sampling)


def test_6_ties_keep_as_many_as_the_schedule_says(constant_logits: None) -> None:
    """All confidences are equal: a threshold with < or <= would keep all or none."""
    masked: list[Tensor] = []
    sampling = Sampling(mode="maskgit", steps=8, choice_temperature=0.0)
    refiner_step(masked.append, sampling)
    assert [int(mask.sum()) for mask in masked] == sampling.schedule.counts(32, 8)[:-1]


def test_7_the_loss_is_of_masked_codes_alone() -> None:
    lm = build()
    codes = torch.randint(1000, (1, 1, 2, 4, 4), dtype=torch.int16)
    from tokvid_lm.code_clips import CodedClips

    clips = CodedClips(codes=codes, captions=("a",), num_frames=5, height=32, width=32, codebook_size=1000)
    for objective in ("maskgit", "frame"):
        documents = Documents(lm.processor, clips, mixture=(MixtureConfig(objective=objective),))  # type: ignore[arg-type]
        for sample in range(20):
            document = documents.document(sample)
            asked = document.labels >= 0
            assert (document.ids[asked] == lm.vocabulary.mask_id).all() and asked.any()
            masked = document.ids == lm.vocabulary.mask_id
            assert (masked == asked).all()


@pytest.mark.parametrize("guides_known", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_8_what_guidance_is_towards_is_dropped_from_what_it_compares_with(
    mode: Any, guides_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The null twin of a video whose cells guidance is towards sees none of them; else it sees all."""
    lm = build()
    codes = torch.arange(32).view(1, 1, 2, 4, 4)
    requests = [split_request([*CAT, VideoSegment(codes=codes, known=first_frames(GRID, 1))], lm)]
    fed: list[Tensor] = []
    plain = Runner._forward
    monkeypatch.setattr(Runner, "_forward", lambda self, ids, *rest: fed.append(ids) or plain(self, ids, *rest))
    sampling = Sampling(mode=mode, steps=2, guidance_scale=2.0, guides_known=guides_known)
    list(stream_ids(lm, requests, sampling, GRID, 5, fps=None, samples=torch.arange(1)))
    given = set((codes + lm.vocabulary.code_offset).flatten()[:16].tolist())
    seen = set(torch.cat([ids[1] for ids in fed[1:]]).tolist())
    assert (given & seen == set()) if guides_known else (given <= seen)


def test_9_what_stays_in_the_cache_is_the_finished_frame() -> None:
    """The last refinement has keys and values of masked ids; the next frame must not see those."""
    fed: list[tuple[Tensor, bool]] = []
    plain = Runner.feed
    with pytest.MonkeyPatch.context() as patch:

        def spy(runner: Runner, ids: Tensor, place: Any, *, block: bool = False, keep: bool = True) -> Tensor:
            fed.append((ids.clone(), keep))
            return plain(runner, ids, place, block=block, keep=keep)

        patch.setattr(Runner, "feed", spy)
        drawn = draw_ids(Sampling(mode="frame", steps=3))
    kept = [ids for ids, keep in fed if keep]
    assert len(kept) == 1, "all but the last frame, once"
    assert build().vocabulary.mask_id not in kept[0]
    codes = kept[0][kept[0] >= build().vocabulary.code_offset]
    assert torch.equal(codes, drawn[0, :16])
    assert torch.equal(drawn, draw_ids(Sampling(mode="frame", steps=3), use_cache=False))


@pytest.mark.parametrize("mode", MODES)
def test_10_nothing_that_was_given_is_changed_in_place(mode: Any) -> None:
    """Show-o writes into its input_ids, which spoils several sequences of one prompt, and a second try."""
    lm = build()
    codes = torch.arange(32).view(1, 1, 2, 4, 4)
    known = first_frames(GRID, 1)
    prompt = [*CAT, VideoSegment(codes=codes, known=known)]
    first = lm.generate(prompt, mode=mode, num_return_sequences=2)
    assert torch.equal(codes, torch.arange(32).view(1, 1, 2, 4, 4)) and torch.equal(known, first_frames(GRID, 1))
    again = lm.generate(prompt, mode=mode, num_return_sequences=2)
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, VideoSegment) and isinstance(other, VideoSegment)
        assert one.codes is not None and other.codes is not None and torch.equal(one.codes, other.codes)
    assert not torch.equal(first[0].codes, first[1].codes)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_11_the_branches_of_guidance_have_caches_of_their_own(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emu3.5 hands one branch the cache of another; JanusFlow empties a cache before it is copied."""
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    plain = Runner._run

    def spy(runner: Runner, *rest: Any, **named: Any) -> Tensor:
        features = plain(runner, *rest, **named)
        seen[runner._cache is not None].append(features)
        return features

    monkeypatch.setattr(Runner, "_run", spy)
    sampling = Sampling(mode=mode, steps=3, guidance_scale=3.0)
    draw_ids(sampling), draw_ids(sampling, use_cache=False)
    for cached, whole in zip(seen[True], seen[False], strict=True):
        assert len(cached) == 2
        for row in range(2):
            torch.testing.assert_close(cached[row], whole[row], atol=1e-5 * float(whole.abs().max()), rtol=0)
        assert not torch.allclose(cached[0, -1], cached[1, -1])
