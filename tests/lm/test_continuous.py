"""A language model of latents: what it reads, what it draws, how it learns, and that it is kept whole."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.integration.processes import run, succeed, torchrun
from tests.lm.tiny import build_model, build_tokenizer
from tokvid.config import from_mapping, to_mapping
from tokvid.data.clips import ClipArray, materialise, open_clips
from tokvid.diffusion_head import DiffusionHead, DiffusionHeadConfig, HeadConfig
from tokvid.errors import CheckpointError, ConfigError, ModelError
from tokvid.flow import Refinement
from tokvid.frames import to_model
from tokvid.training_log import read_log
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm import trainer as lm_trainer
from tokvid_lm.code_clips import LatentClips, code_clips
from tokvid_lm.collate import collate
from tokvid_lm.continuous import LatentHead, new_latent_head
from tokvid_lm.document import IGNORED, DocumentWriter
from tokvid_lm.full_evaluation import evaluate_lm
from tokvid_lm.generation import as_batch, split_request
from tokvid_lm.head_training import HeadRecipe, train_head
from tokvid_lm.latent_documents import LatentDocuments
from tokvid_lm.latent_generation import draw_latent_clips
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.samplers import latents as latents_sampler
from tokvid_lm.samplers.runner import Way
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.templates import VideoHeader
from tokvid_lm.training import train_lm
from tokvid_lm.training_config import LMRecipe
from tokvid_lm.video_settings import VideoSettings
from tokvid_tokenizers import CodecConfig, VideoCodec
from tokvid_tokenizers.quantizers import KLConfig

PROMPT = [TextSegment("a fox moves left")]
SIZE = {"num_frames": 5, "height": 16, "width": 16}
FRAME = MixtureConfig(objective="frame")
DIM = 3
needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch trains in one process alone"
)


@pytest.fixture(scope="module")
def kl_codec() -> VideoCodec:
    torch.manual_seed(0)
    config = CodecConfig(patch=4, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), quantizer=KLConfig(dim=DIM))
    return VideoCodec(config).eval()


def continuous(codec: VideoCodec, **changes: Any) -> VideoLM:
    """A model whose head says something."""
    lm = VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), **changes)
    lm.settings = VideoSettings(sampling=(Sampling(mode="frame", steps=3),))
    lm.diffusion_head = new_latent_head(
        lm.model, HeadConfig(width=16, depth=1), [0.1] * DIM, [0.5] * DIM, seed=0
    ).eval()
    torch.manual_seed(3)
    for parameter in lm.diffusion_head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    lm.refinement = Refinement(steps=2, solver="euler")
    return lm


def drawn(lm: VideoLM, prompts: Any = None, **settings: Any) -> Tensor:
    answers = lm.generate(PROMPT if prompts is None else prompts, **SIZE, **settings)
    frames = [each.frames for each in answers if isinstance(each, VideoSegment) and each.frames is not None]
    assert all(isinstance(each, VideoSegment) and each.codes is None for each in answers)
    return torch.cat(frames)


def sprites(count: int = 12, seed: int = 0) -> ClipArray:
    recipe = make_recipe(Path("nowhere"), seed=seed)
    assert recipe.data.kind == "sprites"
    return materialise(open_clips(replace(recipe.data, train_clips=count), "train"))


def make_recipe(output: Path, *, training: dict[str, Any] | None = None, **changes: Any) -> LMRecipe:
    plain: dict[str, Any] = {
        "task": "lm",
        "output": str(output),
        "codec": "given",
        "data": {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 12, "held_out_clips": 2},
        "model": {"kind": "scratch", "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
        | {"intermediate_size": 32, "text_vocab_size": 300, "max_positions": 128},
        "head": {"width": 16, "depth": 1},
        "refinement": {"steps": 2},
        "training": {"steps": 6, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 2, "precision": "fp32"}
        | {"mixture": [{"objective": "frame"}], "validate_every": 3, "samples": 1, **(training or {})},
        "evaluation": {"clips": 2, "sampling": [{"mode": "frame", "steps": 2, "guidance_scale": 2.0}]},
    }
    return from_mapping(LMRecipe, plain | changes)


def documents(lm: VideoLM, clips: LatentClips, **changes: Any) -> LatentDocuments:
    return LatentDocuments(lm.processor, clips, **({"mixture": (FRAME,), "shuffle": False} | changes))


def coded(codec: VideoCodec, count: int = 3) -> LatentClips:
    found = code_clips(codec, sprites(count))
    assert isinstance(found, LatentClips)
    return found


def test_clips_become_latents_and_one_code(kl_codec: VideoCodec) -> None:
    clips = sprites(3)
    found = code_clips(kl_codec, clips)
    assert isinstance(found, LatentClips)
    expected = kl_codec.encode_latents(to_model(clips.frames))
    torch.testing.assert_close(found.latents, expected, rtol=0, atol=1e-6)
    assert found.codes.shape == (3, 1, *expected.shape[2:]) and not found.codes.any()
    mean, deviation = found.statistics()
    torch.testing.assert_close(torch.tensor(mean), expected.mean((0, 2, 3, 4)), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(deviation), expected.transpose(0, 1).flatten(1).std(1), rtol=0, atol=1e-5)
    assert found.digest() != replace(found, latents=found.latents + 1).digest()


@pytest.mark.parametrize("layout", ["raster", "random"])
def test_every_cell_of_a_document_has_its_latent(kl_codec: VideoCodec, layout: str) -> None:
    lm, clips = continuous(kl_codec, layout=layout), coded(kl_codec)
    document = documents(lm, clips).document(1)
    assert document.latents.shape == (len(document), DIM)
    assert not document.latents[~document.content].any()
    for place in np.flatnonzero(document.content):
        t, h, w = document.cell[place]
        assert np.array_equal(document.latents[place], clips.latents[1, :, t, h, w].numpy())
    asked = document.labels == lm.vocabulary.code_offset
    assert asked.any() and (document.ids[asked] == lm.vocabulary.mask_id).all(), "masked cells have their answers"


def loss_of(lm: VideoLM, clips: LatentClips) -> dict[str, Tensor]:
    assert lm.latent_head is not None
    batch = collate(
        [[documents(lm, clips).document(number)] for number in range(len(clips))],
        pad_id=lm.pad_id,
        positions=lm.positions,
    )
    torch.manual_seed(0)
    return VideoObjective(lm.model, lm.vocabulary, latent_head=lm.diffusion_head)(**batch)


def test_the_loss_of_an_untrained_head_is_that_of_its_closed_form(kl_codec: VideoCodec) -> None:
    lm = continuous(kl_codec)
    clips = coded(kl_codec, 12)
    lm.diffusion_head = new_latent_head(lm.model, HeadConfig(width=16, repeats=64), *clips.statistics(), seed=0)
    # It answers nothing: E|n - x|^2 = 2 of standardised latents.
    assert float(loss_of(lm, clips)["loss"].detach()) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("layout", ["raster", "random"])
def test_a_frame_is_asked_for_from_those_before_it_and_what_is_drawn_of_it(kl_codec: VideoCodec, layout: str) -> None:
    """No hidden state of a masked cell moves with its own latent, another masked one of its frame, or later frames."""
    lm, clips = continuous(kl_codec, layout=layout), coded(kl_codec, 1)
    document = documents(lm, clips).document(0)
    assert lm.latent_head is not None
    objective = VideoObjective(lm.model, lm.vocabulary, latent_head=lm.latent_head)
    asked = document.labels == lm.vocabulary.code_offset
    read = document.content & ~asked
    for frame in (0, 1):
        batch = collate([[document]], pad_id=lm.pad_id, positions=lm.positions)
        latents = batch["latents"].requires_grad_()
        spec = MaskSpec(**{name: batch[name] for name in ("document", "order", "block", "ghost")})
        inputs = objective._read(batch["input_ids"], latents) | mask_for(lm.model, spec, batch["position_ids"])
        hidden = lm.model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        hidden[torch.from_numpy(asked & (document.frame == frame))].square().sum().backward()
        assert latents.grad is not None
        moved = (latents.grad.abs().sum(-1)[0] > 0).numpy()
        beside = document.ghost & (document.frame == frame)  # what is drawn of the frame, in its masked copy
        before = ~document.ghost & (document.frame < frame)
        assert np.array_equal(moved, read & (beside | before))
        assert moved.any()


@pytest.mark.parametrize("layout", ["raster", "random"])
def test_the_head_is_given_what_training_gave_it(
    kl_codec: VideoCodec, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that is a whole frame is drawn from the hidden states of a document in which that frame is masked and those
    before hold what was drawn of them; and it is shown where it was drawn for."""
    lm = continuous(kl_codec, layout=layout)
    assert lm.latent_head is not None
    lm.settings = VideoSettings(sampling=(Sampling(mode="frame", steps=1),))
    given: list[Tensor] = []

    def noted(head: LatentHead, conditions: Tensor, noise: Tensor, **settings: Any) -> Tensor:
        """Latents that say which hidden state they were drawn from."""
        given.append(conditions)
        return conditions[:, :DIM].clone()

    decoded: list[Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(latents_sampler, "draw_latents", noted)
        plain = kl_codec.decode_latents
        patch.setattr(
            kl_codec,
            "decode_latents",
            lambda latents, num_frames: decoded.append(latents) or plain(latents, num_frames=num_frames),
        )
        drawn(lm)
    (latents,) = decoded  # [1,C,t,h,w], each where it is shown

    grid = kl_codec.grid_for(5, 16, 16)
    header = VideoHeader(grid=grid, mode="frame", fps=lm.settings.fps)
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write(writer, PROMPT)
    ids = np.full(grid.cells, lm.vocabulary.code_offset)
    writer.video(ids, header, asked=np.ones(len(ids), bool))
    document = writer.finish()
    at = torch.from_numpy(document.cell)  # [S,3], of every place
    shown = torch.zeros(1, len(document), DIM)
    content = torch.from_numpy(document.content)
    shown[0, content] = latents[0][:, at[content, 0], at[content, 1], at[content, 2]].T
    batch = collate([[document]], pad_id=lm.pad_id, positions=lm.positions)
    spec = MaskSpec(**{name: batch[name] for name in ("document", "order", "block", "ghost")})
    objective = VideoObjective(lm.model, lm.vocabulary, latent_head=lm.latent_head)
    with torch.no_grad():
        inputs = objective._read(batch["input_ids"], shown) | mask_for(lm.model, spec, batch["position_ids"])
        hidden = lm.model.base_model(**inputs, use_cache=False).last_hidden_state[0]
    assert len(given) == grid.t == 2
    for frame in range(grid.t):
        asked = torch.from_numpy((document.labels != IGNORED) & (document.frame == frame))
        t, h, w = at[asked].T
        assert bool((t == frame).all())
        torch.testing.assert_close(latents[0][:, t, h, w].T, hidden[asked][:, :DIM], rtol=0, atol=1e-4)
    moved = (hidden[asked] - given[0]).abs().max()
    assert float(moved) > 1e-3, "the second frame has seen the first"


def test_drawing_is_a_function_of_seed_and_sample(kl_codec: VideoCodec) -> None:
    lm = continuous(kl_codec)
    first = drawn(lm)
    assert first.shape == (1, 3, 5, 16, 16) and first.abs().max() <= 1
    assert torch.equal(drawn(lm), first) and not torch.equal(drawn(lm, seed=1), first)
    long = [TextSegment("two foxes that move right over grass")]
    among, alone = drawn(lm, [PROMPT, long, PROMPT]), drawn(lm, [PROMPT, long, PROMPT], batch_size=1)
    torch.testing.assert_close(among, alone, rtol=0, atol=1e-4)
    assert not torch.allclose(among[0], among[2]), "copies of a prompt are other samples"
    torch.testing.assert_close(drawn(lm, num_return_sequences=2)[:1], first, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_with_and_without_the_cache_the_same_is_drawn(kl_codec: VideoCodec, guidance_scale: float) -> None:
    lm = continuous(kl_codec)
    requests = [split_request(segments, lm) for segments in as_batch([PROMPT, [TextSegment("a crab")]])]
    sampling = Sampling(mode="frame", steps=3, guidance_scale=guidance_scale)
    grid = kl_codec.grid_for(5, 16, 16)
    found = []
    for cached in (True, False):
        way = Way(use_cache=cached)
        clips = draw_latent_clips(lm, requests, sampling, grid, 5, fps=8.0, batch_size=4, way=way, progress=None)
        found.append(torch.cat([clip.frames for clip in clips if clip.frames is not None]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_guidance_at_one_is_none(kl_codec: VideoCodec) -> None:
    lm = continuous(kl_codec)
    plain, near = drawn(lm, guidance_scale=1.0), drawn(lm, guidance_scale=1.0 + 1e-6)
    torch.testing.assert_close(plain, near, rtol=0, atol=1e-4)
    assert not torch.allclose(plain, drawn(lm, guidance_scale=4.0), atol=1e-3)


def test_guidance_rises_with_what_is_drawn_of_a_frame(kl_codec: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = continuous(kl_codec)
    scales: list[float] = []
    plain = latents_sampler.draw_latents

    def noted(*arguments: Any, guidance_scale: float, **settings: Any) -> Tensor:
        scales.append(guidance_scale)
        return plain(*arguments, guidance_scale=guidance_scale, **settings)

    monkeypatch.setattr(latents_sampler, "draw_latents", noted)
    for ramp in (False, True):
        lm.settings = VideoSettings(sampling=(Sampling(mode="frame", steps=3, guidance_scale=3.0, guidance_ramp=ramp),))
        scales.clear()
        drawn(lm)
        # 16 cells a frame: 13, 8 and none are left, by the cosine.
        assert scales == pytest.approx(2 * ([1 + 2 * 3 / 16, 1 + 2 * 8 / 16, 3.0] if ramp else [3.0] * 3))


def test_it_is_saved_whole_and_loads_plainly_without_its_head(kl_codec: VideoCodec, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = continuous(kl_codec)
    lm.save_pretrained(tmp_path / "lm")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    assert again.is_continuous and isinstance(again.diffusion_head, LatentHead)
    assert torch.equal(drawn(again), drawn(lm))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert not [name for name in plain.state_dict() if "latent" in name]
    for name in ("diffusion_head.json", "diffusion_head.safetensors"):
        (tmp_path / "lm" / name).unlink()
    with pytest.raises(CheckpointError, match=r"lacks diffusion_head\.json, and a continuous model draws with it"):
        VideoLM.from_pretrained(tmp_path / "lm")


def test_it_is_evaluated_by_what_it_draws(kl_codec: VideoCodec) -> None:
    lm, clips = continuous(kl_codec), sprites(3)
    found = evaluate_lm(lm, clips, batch_size=2)
    assert (
        set(found.figures["flow"]) == {"frame"} and found.figures["flow"]["frame"] > 0 and "bits" not in found.figures
    )
    assert found.drawn["frame"].frames.shape == clips.frames.shape and found.figures["drawn"]["frame"]["diversity"] > 0
    assert not found.completions and "draws from text alone" in found.left_out["completions"]
    again = evaluate_lm(lm, clips, batch_size=2)
    assert again.figures["flow"] == found.figures["flow"], "the noise of a measurement is the same each time"


def test_what_it_cannot_do_is_said(kl_codec: VideoCodec, tmp_path: Path) -> None:
    lm = continuous(kl_codec, chat=True)
    clip = VideoSegment(frames=torch.zeros(1, 3, 5, 16, 16))
    for settings, word in (
        ({"top_k": 3}, "top_k cannot be used by a continuous model"),
        ({"choice_temperature": 2.0}, "choice_temperature cannot be used by a continuous model"),
        ({"candidates": 2}, "candidates cannot be used by a continuous model"),
        ({"hybrid": True}, "hybrid cannot be used by a continuous model"),
        ({"compiled": True}, "compiled cannot be used by a continuous model"),
        ({"mode": "maskgit"}, "not trained to draw in the mode 'maskgit'"),
    ):
        with pytest.raises(ModelError, match=word):
            lm.generate(PROMPT, **SIZE, **settings)
    with pytest.raises(ModelError, match="reads no videos in its prompt"):
        lm.generate([clip], **SIZE)
    half = torch.zeros(2, 4, 4, dtype=torch.bool)
    half[0] = True
    with pytest.raises(ModelError, match="draws videos from text alone: give no known cells"):
        lm.generate([replace(clip, known=half)], **SIZE)
    with pytest.raises(ModelError, match="does not talk"):
        lm.processor.check_chats()
    with pytest.raises(ModelError, match="gives whole videos: use generate"):
        next(lm.stream(PROMPT, **SIZE))
    lm.diffusion_head = None
    with pytest.raises(ModelError, match="has no diffusion head yet"):
        lm.generate(PROMPT, **SIZE)
    with pytest.raises(ModelError, match="has no diffusion head yet, and is none without"):
        lm.save_pretrained(tmp_path / "lm")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"training": {"mixture": [{"objective": "next_token"}]}}, r"objective next_token \(text_to_video\)"),
        ({"training": {"mixture": [{"objective": "frame", "task": "continuation"}]}}, r"frame \(continuation\)"),
        ({"num_actions": 3}, "num_actions is not for models that draw latents"),
        ({"training": {"loss": {"sliced": False}}}, "sliced: false is not for models"),
        ({"training": {"loss": {"label_smoothing": 0.1}}}, "label_smoothing is not for models"),
        ({"evaluation": {"clips": 1, "sampling": [{"mode": "frame", "top_k": 5}]}}, "top_k is not for models"),
        (
            {"evaluation": {"clips": 1, "sampling": [{"mode": "frame", "choice_temperature": 1}]}},
            "choice_temperature is",
        ),
        ({"evaluation": {"clips": 1, "sampling": [{"mode": "frame", "candidates": 2}]}}, "candidates"),
        ({"data": {"kind": "shards", "path": "codes"}}, "shards is not for models"),
        ({"head": None}, "the recipe has no head"),
    ],
)
def test_recipes_of_what_it_cannot_learn_are_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=word):
        make_recipe(tmp_path, **({"evaluation": {"clips": 1}} | changes))


def test_a_head_belongs_to_a_continuous_codec(kl_codec: VideoCodec, codec: VideoCodec, tmp_path: Path) -> None:
    clips = sprites()
    with pytest.raises(ConfigError, match="has no codes: set head"):
        train_lm(replace(make_recipe(tmp_path), head=None, refinement=Refinement()), clips, clips, codec=kl_codec)
    with pytest.raises(ConfigError, match="has codes: leave it out"):
        train_lm(make_recipe(tmp_path), clips, clips, codec=codec)


def test_it_learns_and_a_stopped_run_resumes_to_the_same_weights(
    kl_codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, held_out = sprites(), sprites(2, seed=1)

    def train(name: str, **changes: Any) -> VideoLM:
        resume = changes.pop("resume", False)
        return train_lm(make_recipe(tmp_path / name, **changes), clips, held_out, codec=kl_codec, resume=resume).lm

    whole = train("straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        plain = lm_trainer.check_finite

        def interrupting(step: int, parts: Any) -> None:
            if step == 3 and "loss" in parts:
                signal.raise_signal(signal.SIGINT)
            plain(step, parts)

        patch.setattr(lm_trainer, "check_finite", interrupting)
        train("stopped")
    # How latents are drawn in the end is nothing that training knows.
    resumed = train("stopped", resume=True, refinement={"steps": 3})
    assert resumed.refinement.steps == 3
    resumed.refinement = whole.refinement
    assert isinstance(whole.diffusion_head, LatentHead) and isinstance(resumed.diffusion_head, LatentHead)
    for one, other in ((whole.model, resumed.model), (whole.diffusion_head, resumed.diffusion_head)):
        for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(left, right)
    fresh = new_latent_head(whole.model, HeadConfig(width=16, depth=1), [0.0] * DIM, [1.0] * DIM, seed=0)
    assert not torch.equal(fresh.latent_out.weight, whole.diffusion_head.latent_out.weight), "it was trained"
    again = VideoLM.from_pretrained(tmp_path / "stopped" / "lm")
    again.refinement = whole.refinement
    assert torch.equal(drawn(again, mode="frame"), drawn(resumed, mode="frame"))
    apart = from_mapping(HeadRecipe, {"task": "head", "output": str(tmp_path / "head"), "lm": "given"})
    with pytest.raises(ModelError, match="a head that is trained with it: use a recipe of the task lm"):
        train_head(apart, clips, lm=whole)


@pytest.mark.slow
@needs_processes
def test_two_processes_learn_what_two_passes_a_step_teach(kl_codec: VideoCodec, tmp_path: Path) -> None:
    """A pass of text alone, which asks the head for nothing, is among them."""
    kl_codec.save_pretrained(tmp_path / "codec")
    mixture = [{"objective": "frame"}, {"objective": "text", "share": 2.0}]
    settings = {"batch_size": 1, "steps": 4, "mixture": mixture}
    together = replace(make_recipe(tmp_path / "two", training=settings), codec=str(tmp_path / "codec"))
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(to_mapping(together)), encoding="utf-8")
    succeed(run(*torchrun(2), "-m", "tokvid", "train", "lm.yaml", cwd=tmp_path))
    alone = make_recipe(tmp_path / "one", training={**settings, "gradient_accumulation": 2})
    splits = [open_clips(alone.data, "train"), open_clips(alone.data, "held_out")]
    expected = train_lm(alone, *splits, codec=kl_codec).lm
    found = VideoLM.from_pretrained(tmp_path / "two" / "lm")
    assert found.latent_head is not None and expected.latent_head is not None
    for one, other in ((found.model, expected.model), (found.latent_head, expected.latent_head)):
        for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_processes
@pytest.mark.parametrize(
    "deepspeed",
    [
        None,
        *(
            pytest.param(name, marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="needs the extra deepspeed"))
            for name in ("zero0", "zero2")
        ),
    ],
)
def test_two_processes_train_it_and_resume_to_the_same_weights(
    deepspeed: str | None, kl_codec: VideoCodec, tmp_path: Path
) -> None:
    kl_codec.save_pretrained(tmp_path / "codec")

    def launch(name: str, *arguments: str) -> list[dict[str, Any]]:
        settings = {
            "deepspeed": deepspeed,
            "keep_checkpoints": 9,
            "steps": 6,
            "log_every": 1,
            "optimizer": {"kind": "adamw"},
        }
        told = replace(make_recipe(tmp_path / name, training=settings), codec=str(tmp_path / "codec"))
        (tmp_path / "lm.yaml").write_text(yaml.safe_dump(to_mapping(told)), encoding="utf-8")
        succeed(run(*torchrun(2), "-m", "tokvid", "train", "lm.yaml", *arguments, cwd=tmp_path))
        return read_log(tmp_path / name / "log.jsonl")

    losses = [line["loss"] for line in launch("whole")]
    assert len(losses) == 6 and all(np.isfinite(losses))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "lm")
    shutil.rmtree(tmp_path / "cut" / "step-000006")
    launch("cut", "--resume")
    for file in ("model.safetensors", "diffusion_head.safetensors"):
        whole, cut = ((tmp_path / name / "lm" / file).read_bytes() for name in ("whole", "cut"))
        assert whole == cut, file
    assert drawn(VideoLM.from_pretrained(tmp_path / "cut" / "lm"), mode="frame").isfinite().all()


def test_a_head_is_not_cut_up(kl_codec: VideoCodec, tmp_path: Path) -> None:
    clips = sprites()
    told = make_recipe(tmp_path, training={"deepspeed": "zero3", "optimizer": {"kind": "adamw"}})
    with pytest.raises(ConfigError, match="ZeRO 3 cuts up a head"):
        train_lm(told, clips, clips, codec=kl_codec)


def test_a_model_of_codes_goes_on_as_one_of_latents(
    kl_codec: VideoCodec, codec: VideoCodec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = VideoLM.extend(build_model("qwen3"), codec=codec, tokenizer=build_tokenizer(), chat=True)
    before.settings = VideoSettings(sampling=(Sampling(mode="frame"),))
    dim = codec.quantizer.dim
    config = DiffusionHeadConfig(condition_dim=dim + 32, mean=(0.0,) * dim, deviation=(1.0,) * dim, width=16, depth=1)
    before.diffusion_head = DiffusionHead(config)
    before.save_pretrained(tmp_path / "codes")
    kept = before.model.get_input_embeddings().weight[: before.vocabulary.code_offset].clone()
    layer = before.model.model.layers[0].mlp.up_proj.weight.clone()
    recipe = make_recipe(
        tmp_path / "run",
        model={"kind": "trained", "name": str(tmp_path / "codes")},
        training={"optimizer": {"kind": "adamw", "learning_rate": 1e-12}},
    )
    lm = train_lm(recipe, sprites(), sprites(2, seed=1), codec=kl_codec).lm
    assert "the diffusion head of" in capsys.readouterr().err, "what refined codes has no use"
    assert lm.vocabulary.total_size == before.vocabulary.code_offset + 1
    torch.testing.assert_close(lm.model.get_input_embeddings().weight[:-1].detach(), kept, rtol=0, atol=1e-6)
    torch.testing.assert_close(lm.model.model.layers[0].mlp.up_proj.weight.detach(), layer, rtol=0, atol=1e-6)
    # And what was trained so goes on once more, with its head.
    assert lm.latent_head is not None
    torch.manual_seed(5)
    for parameter in lm.latent_head.parameters():
        parameter.data = torch.randn_like(parameter)
    lm.save_pretrained(tmp_path / "latents")
    recipe = replace(recipe, output=str(tmp_path / "on"), model=replace(recipe.model, name=str(tmp_path / "latents")))
    further = train_lm(recipe, sprites(), sprites(2, seed=1), codec=kl_codec).lm
    assert further.latent_head is not None and "is left out" not in capsys.readouterr().err
    for one, other in zip(further.latent_head.parameters(), lm.latent_head.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    wider = replace(recipe, output=str(tmp_path / "wider"), head=HeadConfig(width=24, depth=1))
    with pytest.raises(ConfigError, match=r"has a head already: set head to \{'width': 16"):
        train_lm(wider, sprites(), sprites(2, seed=1), codec=kl_codec)
