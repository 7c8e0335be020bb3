"""Whole tiny runs: resumed exactly, stopped cleanly, loadable."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.lm.tiny_run import MODEL, recipe, train
from tokvid.checkpoint import newest_valid, save_state, seal, verify
from tokvid.cli.demo_report import language_model_curve
from tokvid.cli.main import main
from tokvid.errors import CheckpointError, ConfigError, DataError, TrainingError
from tokvid.training_log import read_log
from tokvid_lm import VideoLM
from tokvid_lm import trainer as trainer_module
from tokvid_lm import training as training_module
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.training import TrainedLM, train_lm
from tokvid_lm.training_config import LMRecipe, ScratchModelConfig, ShardDataConfig
from tokvid_lm.video_settings import VideoSettings
from tokvid_tokenizers import VideoCodec, load_codec


def weights(trained: TrainedLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.lm.model.state_dict().items()}


def assert_same_weights(one: VideoLM, other: VideoLM) -> None:
    """Bit for bit."""
    theirs = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something while the loss of ``step`` is looked at."""
    plain = trainer_module.check_finite

    def check(now: int, losses: Any) -> None:
        if now == step and "loss" in losses:
            action()
        plain(now, losses)

    monkeypatch.setattr(trainer_module, "check_finite", check)


@pytest.fixture(scope="module")
def whole(codec: VideoCodec, tmp_path_factory: pytest.TempPathFactory) -> TrainedLM:
    return train(recipe(tmp_path_factory.mktemp("whole")), codec)


def test_a_run_learns_logs_and_saves_a_model_that_loads_plain(whole: TrainedLM) -> None:
    output = whole.folder.parent
    log = read_log(output / "log.jsonl")
    assert [line["step"] for line in log] == list(range(1, 9))
    assert log[-1]["bits (next_token)"] < log[0]["bits (next_token)"]
    assert [line["step"] for line in log if "held-out bits (next_token)" in line] == [4]
    assert log[0]["loss"] * math.log2(math.e) == pytest.approx(log[0]["bits (next_token)"], rel=1e-5)
    assert 0 < whole.losses.validation["next_token"] < 7.5
    assert {f"bits/next_token/frame {frame}" for frame in (0, 1)} < log[0].keys()
    assert sorted(path.name for path in output.iterdir()) == [
        "lm",
        "log.jsonl",
        "recipe.json",
        "step-000006",
        "step-000008",
        "tensorboard",
    ]
    plain = AutoModelForCausalLM.from_pretrained(whole.folder)
    assert plain.config.use_cache and not whole.lm.model.training
    again = VideoLM.from_pretrained(whole.folder)
    chosen = Sampling(guidance_scale=1.5, temperature=0.8, top_k=50)
    shape = {"num_frames": 5, "height": 16, "width": 16, "fps": 8.0, "latent_frames": 2}
    assert again.settings == whole.lm.settings == VideoSettings(sampling=(chosen,), knows_null_prompt=True, **shape)
    assert_same_weights(whole.lm, again)


def test_documents_written_ahead_change_nothing(whole: TrainedLM, codec: VideoCodec, tmp_path: Path) -> None:
    assert_same_weights(train(recipe(tmp_path, loading_workers=2), codec).lm, whole.lm)


def test_the_report_of_a_run_has_both_its_curves(whole: TrainedLM) -> None:
    log = read_log(whole.folder.parent / "log.jsonl")
    curve = language_model_curve(log)
    assert "training" in curve and "held out" in curve
    assert curve != language_model_curve([line | {"held-out bits (next_token)": 1.0} for line in log])


def test_a_killed_run_resumes_to_the_same_weights(
    whole: TrainedLM,
    codec: VideoCodec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def die() -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        at_step(patch, 8, die)
        train(recipe(tmp_path), codec)
    newest = newest_valid(tmp_path)
    assert (newest.step, newest.torn) == (6, [])
    # The newer one is torn: the run goes on from the one before.
    (tmp_path / "step-000006" / "model.safetensors").write_bytes(b"half")
    resumed = train(recipe(tmp_path, log_every=2), codec, resume=True)
    said = capsys.readouterr()
    assert f"passed over {tmp_path / 'step-000006'}: it is torn" in said.err
    assert said.out == "", "stdout is the result's"
    assert_same_weights(whole.lm, resumed.lm)
    assert resumed.losses == whole.losses
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"training\.batch_size was 4, here it is 2"):
        train(recipe(tmp_path, batch_size=2), codec, resume=True)
    # A new run beside old checkpoints would keep, and later take up, those of the old one.
    with pytest.raises(CheckpointError, match="of an earlier run: add --resume"):
        train(recipe(tmp_path, batch_size=2), codec)
    for checkpoint in tmp_path.glob("step-*"):
        (checkpoint / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=f"every checkpoint in {tmp_path} is torn: put one back"):
        train(recipe(tmp_path), codec, resume=True)
    save_state(tmp_path / "step-000999", {}, {})
    with pytest.raises(CheckpointError, match="step-000999 is of another kind of training"):
        train(recipe(tmp_path), codec, resume=True)
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_ctrl_c_saves_and_resumes_to_the_same_weights(
    whole: TrainedLM, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=r"stopped at step 5; .*step-000005 is saved, add --resume"):
            train(recipe(tmp_path), codec)
    assert signal.getsignal(signal.SIGINT) is before
    verify(tmp_path / "step-000005")
    resumed = train(recipe(tmp_path), codec, resume=True)
    assert_same_weights(whole.lm, resumed.lm)


def test_ctrl_c_in_the_last_step_stops_too_and_what_is_finished_is_not_trained_again(
    whole: TrainedLM, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"stopped at step 8; .*step-000008 is"):
        at_step(patch, 8, lambda: signal.raise_signal(signal.SIGINT))
        train(recipe(tmp_path), codec)
    assert not (tmp_path / "lm").exists()
    log = (tmp_path / "log.jsonl").read_bytes()
    resumed = train(recipe(tmp_path), codec, resume=True)
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert resumed.losses == whole.losses
    assert_same_weights(whole.lm, resumed.lm)


def test_a_checkpoint_is_safetensors_and_json_and_no_pickle_is_read(
    whole: TrainedLM, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpickle(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a file was unpickled")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        train(recipe(tmp_path), codec)
    checkpoint = tmp_path / "step-000005"
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", unpickle)
        resumed = train(recipe(tmp_path), codec, resume=True)
    assert_same_weights(whole.lm, resumed.lm)


def test_a_run_that_draws_random_numbers_resumes_to_the_same_weights(
    whole: TrainedLM, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training_module.build_lm

    def with_dropout(*arguments: Any) -> VideoLM:
        lm = plain(*arguments)
        for layer in lm.model.model.layers:
            layer.mlp.register_forward_hook(lambda module, _, made: F.dropout(made, 0.3, module.training))
        return lm

    monkeypatch.setattr(training_module, "build_lm", with_dropout)
    straight = train(recipe(tmp_path / "straight"), codec)
    assert any(not torch.equal(tensor, weights(straight)[name]) for name, tensor in weights(whole).items())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        train(recipe(tmp_path / "stopped"), codec)
    resumed = train(recipe(tmp_path / "stopped"), codec, resume=True)
    assert_same_weights(straight.lm, resumed.lm)


def test_a_checkpoint_that_only_unpickling_could_read_is_refused(codec: VideoCodec, tmp_path: Path) -> None:
    train(recipe(tmp_path, steps=4), codec)
    checkpoint = tmp_path / "step-000004"
    torch.save({}, checkpoint / "optimizer.pt")
    seal(checkpoint)
    with pytest.raises(CheckpointError, match=r"holds optimizer\.pt, which .*remove"):
        train(recipe(tmp_path, steps=4), codec, resume=True)


def test_a_run_that_ignores_ctrl_c_goes_on_ignoring_it(
    whole: TrainedLM, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell starts what it runs in the background so: the Ctrl-C of another command must not end it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
        trained = train(recipe(tmp_path), codec)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert trained.losses == whole.losses


def test_a_loss_that_is_nan_names_the_step_and_leaves_the_last_checkpoint(
    codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, built = training_module.build_lm, []

    def build_and_keep(*arguments: Any) -> VideoLM:
        built.append(plain(*arguments))
        return built[0]

    @torch.no_grad()
    def poison() -> None:
        built[0].model.get_input_embeddings().weight.fill_(math.nan)

    monkeypatch.setattr(training_module, "build_lm", build_and_keep)
    at_step(monkeypatch, 5, poison)
    with pytest.raises(TrainingError, match="step 6: the loss part 'loss' is nan"):
        train(recipe(tmp_path), codec)
    newest = newest_valid(tmp_path)
    assert (newest.step, newest.torn) == (3, [])
    assert not (tmp_path / "lm").exists() and not list(tmp_path.glob("*.tmp"))


def test_weights_that_are_not_finite_are_never_saved(codec: VideoCodec, tmp_path: Path) -> None:
    wild = {"kind": "adamw", "learning_rate": 1e38}
    with pytest.raises(TrainingError, match=r"step 1: the weight 'model\.\S+' is no longer finite"):
        train(recipe(tmp_path, optimizer=wild, checkpoint_every=1, warmup_steps=0), codec)
    assert newest_valid(tmp_path).path is None and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [(slice(None), r"'held-out nats \(next_token\)' is nan"), (slice(1), r"the weight 'model\.embed_tokens\.weight'")],
    ids=["all", "one that no clip uses"],
)
def test_a_finished_model_that_is_broken_is_not_saved(
    rows: slice, words: str, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training_module._train

    def train_and_break(run: LMRecipe, lm: VideoLM, *rest: Any) -> None:
        plain(run, lm, *rest)
        with torch.no_grad():
            lm.model.get_input_embeddings().weight[rows] = math.nan

    monkeypatch.setattr(training_module, "_train", train_and_break)
    untied = {**MODEL, "tie_embeddings": False}
    with pytest.raises(TrainingError, match=f"step 2: .*{words}"):
        train(replace(recipe(tmp_path, steps=2, warmup_steps=0), model=ScratchModelConfig(**untied)), codec)
    assert not (tmp_path / "lm").exists()


def test_bf16_muon_cosine_text_and_accumulation_train_together(codec: VideoCodec, tmp_path: Path) -> None:
    trained = train(
        recipe(
            tmp_path,
            steps=4,
            precision="bf16",
            optimizer={"kind": "muon"},
            schedule="cosine",
            score_text=True,
            loss={"text_weight": 0.5},
            gradient_accumulation=2,
            checkpoint_every=2,
        ),
        codec,
    )
    log = read_log(tmp_path / "log.jsonl")
    assert log[-1]["bits (text)"] < log[0]["bits (text)"]
    assert {p.dtype for p in trained.lm.model.parameters()} == {torch.float32}
    assert trained.lm.model.config._attn_implementation == "sdpa", "the attention of training is left in the model"
    assert json.loads((tmp_path / "step-000002" / "run.json").read_text())["bf16"] is True


def test_accumulated_passes_are_one_larger_batch(codec: VideoCodec, tmp_path: Path) -> None:
    large = train(recipe(tmp_path / "large", steps=3), codec)
    small = train(recipe(tmp_path / "small", steps=3, batch_size=2, gradient_accumulation=2), codec)
    for name, tensor in weights(large).items():
        torch.testing.assert_close(small.lm.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


MODES = [
    {"objective": "next_token"},
    {"objective": "maskgit", "task": "inpainting", "schedule": {"kind": "arccos"}},
    {"objective": "frame", "weight": 0.5},
    {"objective": "caption"},
]


@pytest.mark.parametrize("pack", [0, 112])
def test_every_objective_in_one_run_packed_or_not_resumes_to_the_same_weights(
    pack: int, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"mixture": MODES, "pack": pack, "batch_size": 4, "steps": 6, "log_every": 2}
    straight = train(recipe(tmp_path / "straight", **settings), codec)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        train(recipe(tmp_path / "stopped", **settings), codec)
    resumed = train(recipe(tmp_path / "stopped", **settings), codec, resume=True)
    assert_same_weights(straight.lm, resumed.lm)
    assert straight.losses.validation.keys() == {"next_token", "maskgit", "frame", "caption"}
    assert [sampling.mode for sampling in straight.lm.settings.sampling] == ["next_token", "maskgit", "frame"]
    log = read_log(tmp_path / "straight" / "log.jsonl")
    assert {"bits (maskgit)", "bits (frame)", "bits (text)"} < {name for line in log for name in line}


@pytest.mark.slow  # compiles
def test_compiled_layers_learn_what_the_others_do(codec: VideoCodec, tmp_path: Path) -> None:
    plain, compiled = (
        train(recipe(tmp_path / str(compile), steps=4, pack=96, compile=compile, validate_every=2), codec)
        for compile in (False, True)
    )
    found = dict(compiled.lm.model.named_parameters())
    for name, expected in plain.lm.model.named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def test_rows_of_many_lengths_are_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set training\.pack"):
        recipe(tmp_path, compile=True)


def test_a_run_on_code_shards_learns_what_a_run_on_clips_learns(codec: VideoCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "codec")
    data = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 24, "held_out_clips": 5}
    sprites = tmp_path / "data.yaml"
    sprites.write_text(json.dumps({"data": data}), encoding="utf-8")
    command = ["tokenize", str(sprites), str(tmp_path / "shards"), "--codec", str(tmp_path / "codec")]
    assert main([*command, "--shard-clips", "7", "--workers", "1"]) == 0
    settings = {"mixture": MODES, "steps": 3, "pack": 112}
    from_clips = train(recipe(tmp_path / "clips", **settings), codec)
    on_shards = replace(recipe(tmp_path / "codes", **settings), data=ShardDataConfig(path=str(tmp_path / "shards")))
    from_shards = train_lm(on_shards, codec=codec)
    assert_same_weights(from_clips.lm, from_shards.lm)
    assert from_shards.losses == from_clips.losses and from_shards.lm.settings == from_clips.lm.settings
    with pytest.raises(DataError, match=r"the model speaks tokvid-.*: tokenize the data again with that codec"):
        train_lm(replace(on_shards, output=str(tmp_path / "other")), codec=load_codec("preset:tiny", seed=3))
