"""Pictures of what a language model draws while it is trained: they are those of the model, and change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.lm.tiny import build_model, build_tokenizer
from tests.lm.tiny_run import recipe, train
from tokvid.data.clips import SpriteDataConfig, open_clips
from tokvid.training_log import read_log
from tokvid_lm import VideoLM
from tokvid_lm.code_clips import CodedClips, code_clips
from tokvid_lm.objectives.video_objective import LossConfig, VideoObjective
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.training_config import LMTrainingConfig
from tokvid_lm.training_layers import training_layers
from tokvid_lm.training_samples import sample_sheet
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import VideoCodec


@pytest.fixture(scope="module")
def clips(codec: VideoCodec) -> CodedClips:
    data = SpriteDataConfig(size=(16, 16), num_frames=5, train_clips=1, held_out_clips=3)
    return code_clips(codec, open_clips(data, "held_out"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_a_model_in_training_draws_what_it_draws_when_loaded(
    mode: str, checkpoint_layers: bool, video_lm: VideoLM, clips: CodedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_lm, "settings", VideoSettings(sampling=(Sampling(mode=mode),)))
    expected = sample_sheet(video_lm, clips, 2)
    model, attention = video_lm.model, video_lm.model.config._attn_implementation
    objective = VideoObjective(model, video_lm.vocabulary, LossConfig())
    config = LMTrainingConfig(checkpoint_layers=checkpoint_layers)
    with training_layers(config, model), objective.as_forward():
        during = model.config._attn_implementation
        assert np.array_equal(sample_sheet(video_lm, clips, 2), expected)
        assert model.forward is objective and model.config._attn_implementation == during
    assert model.config._attn_implementation == attention and "forward" not in vars(model)


def test_a_sheet_has_as_many_pairs_as_there_are_clips(video_lm: VideoLM, clips: CodedClips) -> None:
    heights = [len(sheet) for count in (1, 3, 9) if (sheet := sample_sheet(video_lm, clips, count)) is not None]
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.slow
def test_a_run_shows_samples_at_each_validation_and_ends_as_without(codec: VideoCodec, tmp_path: Path) -> None:
    mixture = [{"objective": mode} for mode in MODES]
    shown, plain = (
        train(recipe(tmp_path / name, samples=samples, mixture=mixture, steps=10), codec)
        for name, samples in (("shown", 2), ("plain", 0))
    )
    pictures = events(tmp_path / "shown").Images("held-out clips and drawings")
    assert [picture.step for picture in pictures] == [4, 8]
    assert not events(tmp_path / "plain").Tags()["images"]
    for name, tensor in plain.lm.model.state_dict().items():
        assert torch.equal(shown.lm.model.state_dict()[name], tensor), name
    assert all(0 < line["data_wait"] < 1 for line in read_log(tmp_path / "shown" / "log.jsonl"))


def test_a_model_of_actions_draws_those_of_its_clips(codec: VideoCodec, clips: CodedClips) -> None:
    lm = VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), num_actions=3)
    sheets = [sample_sheet(lm, replace(clips, actions=torch.full((len(clips), 4), action)), 2) for action in (0, 0, 1)]
    assert sheets[0] is not None and np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    assert sample_sheet(lm, clips, 2) is None


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found
