"""Hybrid decode: what the head is given, what it changes, and that it is saved, trained and resumed with its model."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lm.tiny import build_model, build_tokenizer
from tokvid import flow_training
from tokvid.config import from_mapping
from tokvid.data.clips import ClipArray, materialise, open_clips
from tokvid.diffusion_head import DiffusionHead, DiffusionHeadConfig
from tokvid.errors import CheckpointError, ConfigError, DataError, ModelError
from tokvid.flow import Refinement
from tokvid.frames import to_model
from tokvid.grid import Grid
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.head_training import HeadRecipe, _Differences, train_head
from tokvid_lm.hybrid import conditions, finished, refined_latents
from tokvid_lm.samplers.runner import sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES, Mode
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.quantizers import FSQConfig, ResidualConfig

PROMPT = [TextSegment("a fox moves left")]
SIZE = {"num_frames": 5, "height": 16, "width": 16}


def with_head(codec: VideoCodec, **changes: Any) -> VideoLM:
    settings = VideoSettings(
        sampling=tuple(Sampling(mode=mode, steps=2) if mode != "next_token" else Sampling() for mode in MODES)
    )
    lm = VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), **changes)
    lm.settings = settings
    dim = codec.quantizer.dim
    torch.manual_seed(3)
    lm.diffusion_head = DiffusionHead(
        DiffusionHeadConfig(condition_dim=dim + 32, mean=(0.0,) * dim, deviation=(0.3,) * dim, width=16, depth=1)
    ).eval()
    for parameter in lm.diffusion_head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    lm.refinement = Refinement(steps=2, solver="euler")
    return lm


def frames_of(lm: VideoLM, **settings: Any) -> tuple[Tensor, Tensor]:
    (clip,) = lm.generate(PROMPT, **SIZE, **settings)
    assert isinstance(clip, VideoSegment) and clip.frames is not None and clip.codes is not None
    return clip.codes, clip.frames


@pytest.mark.parametrize("mode", MODES)
def test_the_codes_stay_and_the_frames_change(mode: Mode, codec: VideoCodec) -> None:
    lm = with_head(codec)
    plain_codes, plain = frames_of(lm, mode=mode)
    codes, refined = frames_of(lm, mode=mode, hybrid=True)
    assert torch.equal(codes, plain_codes)
    assert refined.shape == plain.shape and refined.abs().max() <= 1
    assert (refined - plain).abs().max() > 1e-3
    assert torch.equal(frames_of(lm, mode=mode, hybrid=True)[1], refined), "the noise is a function of the seed"
    assert not torch.equal(frames_of(lm, mode=mode, hybrid=True, seed=1)[1], refined)
    assert torch.equal(frames_of(lm, mode=mode)[1], plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_refined_alone_as_among_others(mode: Mode, codec: VideoCodec) -> None:
    lm = with_head(codec)
    long = [TextSegment("two foxes that move right over grass")]
    among = lm.generate([PROMPT, long, PROMPT], **SIZE, mode=mode, hybrid=True)
    alone = lm.generate([PROMPT, long, PROMPT], **SIZE, mode=mode, hybrid=True, batch_size=1)
    for one, other in zip(alone, among, strict=True):
        assert isinstance(one, VideoSegment) and isinstance(other, VideoSegment)
        assert one.frames is not None and other.frames is not None
        torch.testing.assert_close(one.frames, other.frames, rtol=0, atol=1e-4)


def test_no_noise_and_an_untrained_head_give_the_plain_frames(codec: VideoCodec) -> None:
    lm = with_head(codec)
    dim = codec.quantizer.dim
    lm.diffusion_head = DiffusionHead(
        DiffusionHeadConfig(condition_dim=dim + 32, mean=(0.0,) * dim, deviation=(1.0,) * dim, width=16, depth=1)
    )
    lm.refinement = Refinement(temperature=0.0)
    torch.testing.assert_close(frames_of(lm, hybrid=True)[1], frames_of(lm)[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["raster", "random"])
@pytest.mark.parametrize("mode", MODES)
def test_a_cell_is_given_the_hidden_state_of_its_own_code(mode: Mode, layout: str, codec: VideoCodec) -> None:
    lm = with_head(codec, layout=layout)
    header = VideoHeader(grid=Grid(t=2, h=3, w=3), mode=mode, fps=8.0)
    codes = torch.arange(18).reshape(1, 1, 2, 3, 3)
    changed = codes.clone()
    changed[0, 0, 1, 1, 0] = 900  # cell number 3 of its frame
    with sampling_from(lm.model, None):
        before, after = (conditions(lm, [finished(lm, PROMPT, each[0], header)], each) for each in (codes, changed))
    dim = codec.quantizer.dim
    assert before.shape == (1, 2, 3, 3, dim + 32)
    torch.testing.assert_close(before[..., :dim], codec.quantizer.dequantize(codes).permute(0, 2, 3, 4, 1))
    moved = ((before - after)[..., dim:].abs().amax(-1)[0] > 1e-6).flatten(1)
    if mode == "next_token":  # what stands at its place or behind it
        order = lm.layout.frame_order(3, 3, 1).tolist()
        behind = set(order[order.index(3) :])
        assert moved.tolist() == [[False] * 9, [cell in behind for cell in range(9)]]
    else:
        assert moved[1].all(), "all of its own frame see it"
        assert moved[0].all() == (mode == "maskgit") and moved[0].any() == (mode == "maskgit")


def test_of_a_cell_of_two_codes_the_last_ones_hidden_state_is_given() -> None:
    quantizer = ResidualConfig(depth=2, quantizer=FSQConfig(levels=(5, 5, 3)))
    codec = VideoCodec(replace(load_codec("preset:tiny").config, quantizer=quantizer))  # type: ignore[arg-type]
    lm = with_head(codec)
    header = VideoHeader(grid=Grid(t=1, h=2, w=2), fps=8.0)
    codes = torch.zeros(1, 2, 1, 2, 2, dtype=torch.int64)
    dim = codec.quantizer.dim
    for stage, row, column in ((0, 0, 1), (1, 1, 0)):
        changed = codes.clone()
        changed[0, stage, 0, row, column] = 7
        with sampling_from(lm.model, None):
            before, after = (conditions(lm, [finished(lm, PROMPT, each[0], header)], each) for each in (codes, changed))
        moved = ((before - after)[..., dim:].abs().amax(-1)[0, 0] > 1e-6).flatten().tolist()
        place = 2 * row + column
        assert moved == [cell >= place for cell in range(4)], "the last code of a cell has seen its first"


def test_a_head_is_saved_beside_a_plain_model_and_comes_back(codec: VideoCodec, tmp_path: Path) -> None:
    lm = with_head(codec)
    lm.save_pretrained(tmp_path / "lm")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    assert again.refinement == lm.refinement
    assert torch.equal(frames_of(again, hybrid=True)[1], frames_of(lm, hybrid=True)[1])
    again.save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "diffusion_head.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not hold the weights of this head"):
        VideoLM.from_pretrained(tmp_path / "lm")


def test_a_head_of_another_model_is_refused(codec: VideoCodec, tmp_path: Path) -> None:
    lm = with_head(codec)
    lm.diffusion_head = DiffusionHead(DiffusionHeadConfig(condition_dim=7, mean=(0.0,), deviation=(1.0,)))
    lm.save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelError, match="draws 1 channels from conditions of 7 numbers, this model's latents have 4"):
        VideoLM.from_pretrained(tmp_path / "lm")


def test_without_a_head_hybrid_is_refused(video_lm: VideoLM) -> None:
    with pytest.raises(ModelError, match="hybrid needs a model with a diffusion head"):
        video_lm.generate(PROMPT, **SIZE, hybrid=True)
    with pytest.raises(ModelError, match="hybrid cannot be used to generate text"):
        video_lm.generate(PROMPT, output="text", hybrid=True)


def test_noise_of_a_cell_is_its_own(codec: VideoCodec) -> None:
    head = with_head(codec).diffusion_head
    assert head is not None
    given = torch.randn(2, 2, 2, 2, head.config.condition_dim)
    settings = {"seed": 5, "refinement": Refinement(steps=2)}
    both = refined_latents(head, given, torch.tensor([3, 8]), **settings)
    torch.testing.assert_close(both[1:], refined_latents(head, given[1:], torch.tensor([8]), **settings))
    assert not torch.allclose(both[1:], refined_latents(head, given[1:], torch.tensor([9]), **settings))


def recipe(output: Path, **training: Any) -> HeadRecipe:
    data = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 12, "held_out_clips": 2}
    settings = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}
    return from_mapping(
        HeadRecipe,
        {
            "task": "head",
            "output": str(output),
            "lm": "none",
            "data": data,
            "head": {"width": 16, "depth": 1},
            "training": {**settings, **training},
        },
    )


def interrupted_at(wanted: int, step: int) -> None:
    if step == wanted:
        signal.raise_signal(signal.SIGINT)


def clips(recipe: HeadRecipe) -> ClipArray:
    return materialise(open_clips(recipe.data, "train"))


def test_a_head_learns_and_a_stopped_run_resumes_to_the_same_weights(
    codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = recipe(tmp_path / "straight")
    whole = train_head(straight, clips(straight), lm=with_head(codec))
    stopped = recipe(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        plain = flow_training.check_finite
        patch.setattr(flow_training, "check_finite", lambda step, parts: interrupted_at(3, step) or plain(step, parts))
        train_head(stopped, clips(stopped), lm=with_head(codec))
    resumed = train_head(stopped, clips(stopped), lm=with_head(codec), resume=True)
    assert whole.diffusion_head is not None and resumed.diffusion_head is not None
    for one, other in zip(whole.diffusion_head.parameters(), resumed.diffusion_head.parameters(), strict=True):
        assert torch.equal(one, other)
    assert VideoLM.from_pretrained(tmp_path / "stopped" / "lm").diffusion_head is not None
    retrained = with_head(codec)
    retrained.model.get_input_embeddings().weight.data[0] += 1  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="the models differ"):
        train_head(stopped, clips(stopped), lm=retrained, resume=True)
    shown = clips(stopped)
    shown.frames[-1] += 1
    with pytest.raises(CheckpointError, match="the clips differ"):
        train_head(stopped, shown, lm=with_head(codec), resume=True)
    other = replace(stopped, seed=1)
    with pytest.raises(CheckpointError, match="seed was 0, here it is 1"):
        train_head(other, clips(other), lm=with_head(codec), resume=True)


def test_a_head_learns_what_its_code_lost_of_each_cell(codec: VideoCodec) -> None:
    """Clips that are not square: what is given and what is to be drawn are those of the same cell."""
    data = replace(recipe(Path("nowhere")).data, size=(16, 24), train_clips=3)
    wide = materialise(open_clips(data, "train"))
    lm = with_head(codec)
    examples = _Differences(lm, wide, 0.0)
    torch.manual_seed(0)
    given, lost = examples.batch([0, 2], 0)
    frames = to_model(wide.frames[[0, 2]])
    with torch.inference_mode():
        whole, codes = codec.unrounded_latents(frames), codec.encode(frames)
    dim = codec.quantizer.dim
    expected = whole.permute(0, 2, 3, 4, 1).flatten(0, 3)
    torch.testing.assert_close(given[:, :dim] + lost, expected, rtol=0, atol=1e-5)
    assert float(lost.abs().mean()) > 1e-3
    header = VideoHeader(grid=codec.grid_for(5, 16, 24), mode="next_token", fps=wide.fps)
    documents = [
        finished(lm, [TextSegment(wide.captions[number])], code, header)
        for number, code in zip((0, 2), codes, strict=True)
    ]
    with sampling_from(lm.model, None):
        torch.testing.assert_close(given, conditions(lm, documents, codes).flatten(0, 3))


def test_a_head_begins_from_the_mean_and_deviation_of_clips_spread_over_all(
    codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_training, "_COUNTED", 4)
    few = recipe(tmp_path, steps=2)
    lm = train_head(few, clips(few), lm=with_head(codec))
    assert lm.diffusion_head is not None
    frames = to_model(clips(few).frames[::3])  # 4 of 12
    with torch.inference_mode():
        lost = codec.unrounded_latents(frames) - codec.quantizer.dequantize(codec.encode(frames))
    lost = lost.transpose(0, 1).flatten(1)
    config = lm.diffusion_head.config
    torch.testing.assert_close(torch.tensor(config.mean), lost.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(config.deviation), lost.std(1), rtol=1e-4, atol=1e-5)


def test_a_head_is_trained_on_clips_like_those_of_its_model(codec: VideoCodec, tmp_path: Path) -> None:
    lm, own = with_head(codec), recipe(tmp_path)
    lm.settings = replace(lm.settings, fps=12.0)
    with pytest.raises(ModelError, match="trained at 12 frames a second, these clips have 8"):
        train_head(own, clips(own), lm=lm)
    lm.settings = replace(lm.settings, fps=8.0, num_frames=9, height=16, width=16)
    with pytest.raises(ModelError, match="clips of 9 frames of 16x16, these have 5 of 16x16"):
        train_head(own, clips(own), lm=lm)


def test_too_few_clips_for_a_batch_are_said(codec: VideoCodec, tmp_path: Path) -> None:
    small = recipe(tmp_path, batch_size=64)
    with pytest.raises(DataError, match="a batch needs 64 clips, the data has 12"):
        train_head(small, clips(small), lm=with_head(codec))


def test_a_model_with_actions_has_no_head_yet(codec: VideoCodec, tmp_path: Path) -> None:
    moving = with_head(codec, num_actions=3)
    with pytest.raises(ModelError, match="draws videos from 3 actions"):
        train_head(recipe(tmp_path), clips(recipe(tmp_path)), lm=moving)
    with pytest.raises(ModelError, match="draws videos from 3 actions"):
        moving.generate(PROMPT, **SIZE, hybrid=True)


def test_clips_beyond_the_models_context_are_refused(codec: VideoCodec, tmp_path: Path) -> None:
    large = recipe(tmp_path)
    large = replace(large, data=replace(large.data, size=(128, 128)))
    with pytest.raises(ModelError, match="positions, but the model's context has 256"):
        train_head(large, clips(large), lm=with_head(codec))


def test_a_head_is_trained_in_one_process(codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="in one process, and this is one of 4"):
        train_head(recipe(tmp_path), clips(recipe(tmp_path)), lm=with_head(codec))
