"""Training a codec: it learns, it sees every clip, and it stops with one line where it cannot go on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.tokenizers.lively import SMALLEST, noise
from tests.tokenizers.tiny_run import STEPS, Killed, assert_same_run, at_step, die, killed_at, lines, recipe
from tokvid.checkpoint import newest_valid
from tokvid.cli.demo_report import codec_curve
from tokvid.config import from_mapping
from tokvid.data.clips import ClipArray
from tokvid.errors import CheckpointError, ConfigError, DataError, TrainingError
from tokvid.metrics.psnr_ssim import psnr
from tokvid.optimizer import AdamWConfig, MuonConfig
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers import training as training_module
from tokvid_tokenizers.codec import CodecOutput
from tokvid_tokenizers.evaluation import reconstruct
from tokvid_tokenizers.losses.quantizer import QuantizerLossConfig
from tokvid_tokenizers.quantizers import LFQConfig, VQConfig
from tokvid_tokenizers.training import CODEC_FOLDER, RECIPE_FILE, CodecTrainer, train_codec
from tokvid_tokenizers.training_config import CodecRecipe


def test_strips_of_held_out_clips_are_shown_at_each_validation(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    train_codec(recipe(tmp_path), *clips)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = events.Images("held-out clips and reconstructions")
    assert [picture.step for picture in shown] == [4, 8]
    height, width = clips[1].frames.shape[2:4]
    # Two clips, one below the other, each frame of the original beside that of the reconstruction.
    assert shown[0].height >= 2 * height and shown[0].width >= 2 * width * clips[1].frames.shape[1]


@pytest.mark.parametrize("optimizer", [MuonConfig(), AdamWConfig(learning_rate=0.01)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_few_steps_lower_the_loss(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], optimizer: MuonConfig | AdamWConfig, precision: str
) -> None:
    trained = train_codec(recipe(tmp_path, optimizer=optimizer, precision=precision, steps=30), *clips)
    log = lines(tmp_path)
    assert log[-1]["step"] == 30
    assert log[-1]["l2"] < 0.6 * log[0]["l2"]
    assert log[-1]["psnr"] > log[0]["psnr"] + 2
    curve = codec_curve(log)
    assert "training" in curve and "held out" in curve
    assert log[1]["usage"] > 0 and "held_out_psnr" not in log[0]
    evaluation = trained.evaluation
    assert evaluation.clips == len(evaluation.psnr_each) == 3
    assert evaluation.codes == 3 * 2 * 4 * 4
    assert evaluation.psnr == pytest.approx(np.mean(evaluation.psnr_each))
    assert evaluation.psnr > 8
    assert not trained.codec.training
    assert trained.folder == tmp_path / CODEC_FOLDER
    assert load_codec(trained.folder).codec_id == trained.codec.codec_id
    saved = json.loads((tmp_path / RECIPE_FILE).read_text(encoding="utf-8"))
    assert from_mapping(CodecRecipe, saved) == recipe(tmp_path, optimizer=optimizer, precision=precision, steps=30)


def test_the_figures_are_of_the_very_reconstructions_that_can_be_shown(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    """In fp32, however the run computed: as whoever loads the codec will see them."""
    trained = train_codec(recipe(tmp_path, precision="bf16", steps=30), *clips)
    shown, held_out = trained.reconstructions, clips[1].frames
    again = reconstruct(load_codec(trained.folder), held_out)
    assert np.array_equal(shown.pictures, again.pictures) and torch.equal(shown.codes, again.codes)
    each = [psnr(*pair) for pair in zip(held_out, shown.pictures, strict=True)]
    assert trained.evaluation.psnr_each == each
    assert trained.evaluation.codes == shown.codes.numel()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = reconstruct(trained.codec, held_out)
    assert not np.array_equal(coarse.pictures, shown.pictures), "this test cannot tell the precisions apart"


def test_a_decoder_learns_from_latents_that_are_not_rounded_too(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, ...]] = []
    forward = VideoCodec.forward

    def watched(codec: VideoCodec, frames: Tensor, unrounded: Tensor | None = None) -> CodecOutput:
        assert unrounded is not None
        seen.append(tuple(unrounded.tolist()))
        return forward(codec, frames, unrounded)

    monkeypatch.setattr(VideoCodec, "forward", watched)
    train_codec(recipe(tmp_path, unrounded_share=0.5, steps=12), *clips)
    drawn = [each for step in seen for each in step]
    assert len(seen) == 12 and 0.2 < sum(drawn) / len(drawn) < 0.8 and len(set(seen)) > 1


def test_the_weight_of_the_quantizers_loss_follows_its_schedule(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    schedule = QuantizerLossConfig(start=3.0, end=1.0, steps=4)
    assert [schedule.weight_at(step) for step in range(6)] == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0]
    assert QuantizerLossConfig().weight_at(0) == 1.0
    for name, settings in (("plain", QuantizerLossConfig()), ("twice", QuantizerLossConfig(start=2.0, end=2.0))):
        run = recipe(tmp_path / name, log_every=1, quantizer_loss=settings)
        codec = dataclasses.replace(SMALLEST, quantizer=LFQConfig(codebook_size=16))
        train_codec(dataclasses.replace(run, codec=codec), *clips)
    plain, twice = (lines(tmp_path / name) for name in ("plain", "twice"))
    assert twice[0]["quantizer"] == pytest.approx(2 * plain[0]["quantizer"], rel=1e-6) != 0
    with pytest.raises(ConfigError, match="start must be at least 0"):
        QuantizerLossConfig(start=-1.0)
    with pytest.raises(ConfigError, match="start is 2 and end 1: say in how many steps"):
        QuantizerLossConfig(start=2.0)


def test_each_pass_sees_every_clip_once_and_in_another_order(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    numbered = dataclasses.replace(clips[0], frames=clips[0].frames.copy())
    numbered.frames[:] = np.arange(len(numbered), dtype=np.uint8)[:, None, None, None, None]
    trainer = CodecTrainer(recipe(tmp_path), numbered, clips[1])

    def drawn(step: int) -> list[int]:
        frames = trainer.batch(step)
        assert frames.shape == (4, 3, 5, 16, 16)
        return [round(float(value + 1) * 127.5) for value in frames[:, 0, 0, 0, 0]]

    passes = [drawn(2 * number) + drawn(2 * number + 1) for number in range(4)]
    assert all(len(set(seen)) == 8 for seen in passes)
    assert len({tuple(seen) for seen in passes}) == 4
    assert drawn(5) == passes[2][4:]


def poison(trainer: CodecTrainer) -> None:
    with torch.no_grad():
        trainer.codec.decoder.head.project.weight[0, 0] = torch.nan


def test_a_loss_that_is_not_a_number_stops_the_run(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 9, poison)
        with pytest.raises(TrainingError, match=r"^step 10: the loss part 'l2' is nan; the last checkpoint"):
            train_codec(recipe(tmp_path), *clips)
    assert newest_valid(tmp_path).step == 8
    assert not (tmp_path / CODEC_FOLDER).exists()
    train_codec(recipe(tmp_path), *clips, resume=True)
    assert_same_run(tmp_path, straight)


def test_an_absurd_learning_rate_stops_the_run(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    absurd = MuonConfig(learning_rate=1e30, adam_learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"^step 2: .*a lower learning rate"):
        train_codec(recipe(tmp_path, optimizer=absurd, warmup_steps=0), *clips)
    assert newest_valid(tmp_path).path is None


@pytest.mark.parametrize("step", [7, STEPS - 1])
def test_weights_that_are_not_numbers_are_never_saved(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The loss of a step is that of the weights before it: the last update before a checkpoint is seen by none."""

    def spoil_the_update(trainer: CodecTrainer) -> None:
        update = trainer.engine.optimizer.step
        monkeypatch.setattr(trainer.engine.optimizer, "step", lambda: (update(), poison(trainer)))

    at_step(monkeypatch, step, spoil_the_update)
    with pytest.raises(TrainingError, match=rf"^step {step + 1}: the weight 'decoder.head.project.weight'"):
        train_codec(recipe(tmp_path), *clips)
    assert newest_valid(tmp_path).step == (4 if step == 7 else 8)
    assert not (tmp_path / CODEC_FOLDER).exists()


def test_a_new_run_does_not_mix_with_the_checkpoints_of_an_old_one(
    straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    """The old ones have higher steps: they would be kept in place of the new, and be resumed from."""
    before = sorted(straight.rglob("*"))
    with pytest.raises(CheckpointError, match=r"step-000012 .*--resume"):
        train_codec(recipe(straight), *clips)
    assert sorted(straight.rglob("*")) == before


def test_too_few_clips_are_refused(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    train, held_out = clips
    with pytest.raises(DataError, match="a batch needs 11 clips, the training data has 10"):
        train_codec(recipe(tmp_path / "run", batch_size=11), train, held_out)
    nothing = dataclasses.replace(held_out, frames=held_out.frames[:0], captions=[], names=[])
    with pytest.raises(DataError, match="no held-out clips"):
        train_codec(recipe(tmp_path / "run"), train, nothing)
    assert not (tmp_path / "run").exists()


def test_the_codec_is_safe_before_it_is_measured(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "reconstruct", lambda codec, clips, batch_size: die(codec))
    with pytest.raises(Killed):
        train_codec(recipe(tmp_path, validate_every=100), *clips)
    assert VideoCodec.from_pretrained(tmp_path / CODEC_FOLDER).codebook_size == 75


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"warmup_steps": 12}, "warmup_steps must be less than steps"),
        ({"gradient_clip": 0.0}, "gradient_clip must be positive"),
        ({"gradient_clip": float("nan")}, "gradient_clip must be positive"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(tmp_path, **setting)


def test_a_second_stage_trains_the_decoder_and_leaves_the_codes(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = dataclasses.replace(SMALLEST, quantizer=VQConfig(codebook_size=32, dim=3, restart_below=0.5))
    first = train_codec(dataclasses.replace(recipe(tmp_path / "first"), codec=codec), *clips).codec
    start = str(tmp_path / "first" / CODEC_FOLDER)

    def second(name: str) -> CodecRecipe:
        return dataclasses.replace(recipe(tmp_path / name, start_from=start, trains="decoder"), codec=codec)

    tuned = train_codec(second("second"), *clips).codec
    before, after = first.state_dict(), tuned.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    frames = noise(1, 3, 5, 16, 16)
    assert torch.equal(first.encode(frames), tuned.encode(frames))
    # It went on from there: its first loss is near the last of the first stage, and it resumes as any run.
    assert lines(tmp_path / "second")[0]["l2"] < 1.3 * lines(tmp_path / "first")[-1]["l2"]
    killed_at(monkeypatch, 9, second("stopped"), clips)
    train_codec(second("stopped"), *clips, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "second")


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    train_codec(recipe(tmp_path / "first"), *clips)
    start = str(tmp_path / "first" / CODEC_FOLDER)
    other = dataclasses.replace(SMALLEST, decoder_blocks=(2,))
    with pytest.raises(ConfigError, match="another configuration"):
        train_codec(dataclasses.replace(recipe(tmp_path / "second", start_from=start), codec=other), *clips)
    with pytest.raises(ConfigError, match="needs start_from"):
        recipe(tmp_path / "second", trains="decoder")
