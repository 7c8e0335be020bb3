"""The plan of a codec recipe against a training of it: parameters, arithmetic, and what lies between the passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.tokenizers.lively import SMALLEST
from tests.tokenizers.tiny_run import recipe
from tokvid.cli.main import main
from tokvid.cluster import Cluster
from tokvid.config import from_mapping
from tokvid.data.clips import ClipArray
from tokvid.errors import ConfigError
from tokvid.metrics.efficientnet_lite import load_efficientnet_lite
from tokvid.optimizer import AdamWConfig, MuonConfig
from tokvid.recipe import load_recipe, shipped_recipes
from tokvid.training_log import TrainingLog
from tokvid_tokenizers.codec_config import AnyCodecConfig, FactorisedCodecConfig, TransformerCodecConfig
from tokvid_tokenizers.discriminator import DiscriminatorConfig
from tokvid_tokenizers.feed import BucketConfig
from tokvid_tokenizers.losses.adversarial import AdversarialConfig, r1_loss
from tokvid_tokenizers.losses.reconstruction import ReconstructionLossConfig
from tokvid_tokenizers.plan import plan_codec
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig, VQConfig
from tokvid_tokenizers.step_cost import FlopCounter
from tokvid_tokenizers.training import CodecTrainer
from tokvid_tokenizers.training_config import CodecRecipe

FSQ = FSQConfig(levels=(5, 5, 5))
ADVERSARY = AdversarialConfig(discriminator=DiscriminatorConfig(channels=8, layers=2), warmup_steps=0, ramp_steps=0)
CODECS: dict[str, AnyCodecConfig] = {
    "shift": SMALLEST,
    "vq": replace(SMALLEST, quantizer=VQConfig(codebook_size=16, dim=4)),
    "kl": replace(SMALLEST, quantizer=KLConfig(dim=4)),
    "factorised": FactorisedCodecConfig(
        channels=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1), quantizer=FSQ
    ),
    "transformer": TransformerCodecConfig(
        patch=4, channels=16, heads=2, encoder_blocks=1, decoder_blocks=1, spatial_window=2, quantizer=FSQ
    ),
}


def run(output: Path, codec: AnyCodecConfig = SMALLEST, **training: Any) -> CodecRecipe:
    return replace(recipe(output, **{"optimizer": AdamWConfig(), **training}), codec=codec)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("adversarial", [None, ADVERSARY, replace(ADVERSARY, adaptive=False)])
def test_arithmetic_is_that_of_a_step(
    kind: str, adversarial: AdversarialConfig | None, tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    planned = run(tmp_path, CODECS[kind], adversarial=adversarial)
    plan = plan_codec(planned, Cluster())
    trainer = CodecTrainer(planned, *clips)
    with TrainingLog(tmp_path, 12, tensorboard=False, every=50) as log, trainer.feed:
        trainer.train_mode()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            trainer.train_step(log)
    assert plan["step"]["flops"] == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert plan["step"]["clips"] == planned.training.batch_size
    assert plan["model"]["parameters"] == sum(parameter.numel() for parameter in trainer.codec.parameters())
    judge = 0 if trainer.adversary is None else sum(p.numel() for p in trainer.adversary.network.parameters())
    assert plan["model"]["discriminator"] == judge
    whole, *_ = plan["memory"]
    assert whole["weights"] == whole["gradients"] == 4 * (plan["model"]["parameters"] + judge)
    states = [trainer.engine.optimizer, *([] if trainer.adversary is None else [trainer.adversary.engine.optimizer])]
    moments = [
        value.nbytes for each in states for state in each.state.values() for value in state.values() if value.ndim
    ]
    assert whole["optimizer"] == pytest.approx(sum(moments), rel=0.1)


def test_smooth_verdicts_cost_gradients_of_gradients(tmp_path: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    smooth = replace(ADVERSARY, r1=0.1, r1_every=4)
    plain, more = (
        plan_codec(run(tmp_path, adversarial=each), Cluster())["step"]["flops"] for each in (ADVERSARY, smooth)
    )
    trainer = CodecTrainer(run(tmp_path, adversarial=smooth), *clips)
    assert trainer.adversary is not None
    with trainer.feed, FlopCounter() as counter:
        frames = trainer.batch(0).requires_grad_()
        r1_loss(trainer.adversary.network(frames), frames).backward()
    assert more - plain == pytest.approx(counter.total / 4)


@pytest.mark.parametrize("kind", ["shift", "factorised", "transformer"])
@pytest.mark.parametrize("settings", [{}, {"adversarial": ADVERSARY}, {"checkpoint_blocks": True}])
def test_what_lies_between_the_passes_is_what_autograd_keeps(
    kind: str, settings: dict[str, Any], tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    planned = run(tmp_path, CODECS[kind], **settings)
    trainer = CodecTrainer(planned, *clips)
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with trainer.feed:
        trainer.train_mode()
        frames = trainer.batch(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = trainer.codec(frames)
            loss = (output.frames - frames).square().mean()
            if trainer.adversary is not None:
                heard = trainer.adversary.codec_loss(0, output.frames, loss, trainer.codec.last_layer)
                assert heard is not None
                loss = loss + heard
    networks = [trainer.codec, *([] if trainer.adversary is None else [trainer.adversary.network])]
    own = {tensor.untyped_storage().data_ptr() for network in networks for tensor in network.state_dict().values()}
    measured = frames.nbytes + sum(size for place, (size, _) in kept.items() if place not in own)
    assert plan_codec(planned, Cluster())["memory"][0]["between_passes"] == pytest.approx(measured, rel=0.1)


def test_a_decoder_alone_spares_the_encoder(tmp_path: Path) -> None:
    both, alone = (
        plan_codec(run(tmp_path, trains=trains, start_from="somewhere"), Cluster()) for trains in ("all", "decoder")
    )
    assert alone["model"]["parameters"] == both["model"]["parameters"] > alone["model"]["trained"]
    assert alone["step"]["flops"] < 0.85 * both["step"]["flops"]
    assert alone["memory"][0]["optimizer"] == 8 * alone["model"]["trained"]


def test_buckets_count_by_their_shares_and_steps(tmp_path: Path) -> None:
    short, long = BucketConfig(num_frames=1, batch_size=8, until_step=6), BucketConfig(batch_size=4, from_step=3)
    alone = [
        plan_codec(run(tmp_path, clips="disk", buckets=(replace(each, from_step=0, until_step=None),)), Cluster())
        for each in (short, long)
    ]
    both = plan_codec(run(tmp_path, clips="disk", buckets=(short, long)), Cluster())
    # Of 12 steps 3 are of the one, 3 of either, 6 of the other.
    expected = (4.5 * alone[0]["step"]["flops"] + 7.5 * alone[1]["step"]["flops"]) / 12
    assert both["step"]["flops"] == pytest.approx(expected)
    assert both["step"]["clips"] == pytest.approx((4.5 * 8 + 7.5 * 4) / 12)


def test_gpus_share_a_batch_and_what_zero_cuts_up(tmp_path: Path) -> None:
    planned = run(tmp_path, average_decay=0.9)
    one, four = (plan_codec(planned, Cluster(count=count, price=2.0)) for count in (1, 4))
    assert four["step"] == pytest.approx(one["step"]) and four["run"]["hours"] == pytest.approx(one["run"]["hours"] / 4)
    assert four["run"]["cost"] == pytest.approx(one["run"]["cost"])
    _, zero, first, second = four["memory"]
    assert zero["optimizer"] == pytest.approx(8 / 12 * 4 * first["optimizer"], rel=0.01)
    assert first["gradients"] == pytest.approx(zero["gradients"] / 4, rel=0.01)
    assert (second["gradients"], second["optimizer"]) == (first["gradients"], first["optimizer"])
    plain = plan_codec(replace(planned, training=replace(planned.training, average_decay=0.0)), Cluster())
    copy = one["memory"][0]["between_passes"] - plain["memory"][0]["between_passes"]
    assert copy == 4 * one["model"]["parameters"]
    with pytest.raises(ConfigError, match="a batch of 4 clips cannot be shared by 3 GPUs"):
        plan_codec(planned, Cluster(count=3))


def test_what_a_training_refuses_is_not_planned(tmp_path: Path) -> None:
    assert [row["zero"] for row in plan_codec(run(tmp_path, optimizer=MuonConfig()), Cluster())["memory"]] == [None, 0]


def test_perceptual_losses_count(tmp_path: Path) -> None:
    load_efficientnet_lite.cache_clear()
    seen = ReconstructionLossConfig(perceptual=0.1, perceptual_frames=2)
    plain, more = (plan_codec(run(tmp_path, loss=loss), Cluster()) for loss in (ReconstructionLossConfig(), seen))
    assert more["step"]["flops"] > plain["step"]["flops"]
    # What they look by is shared with trainings, and still has its weights.
    assert all(torch.isfinite(parameter).all() for parameter in load_efficientnet_lite().parameters())


@pytest.mark.slow
def test_every_shipped_recipe_of_a_codec_is_planned() -> None:
    recipes = {name: load_recipe(name, []) for name in shipped_recipes() if name.startswith("codec/")}
    codecs = {name: data for name, data in recipes.items() if data["task"] == "codec"}
    assert len(codecs) > 8
    assert {name for name in recipes if name not in codecs} == {"codec/natural-128-refine", "codec/sprites-refine"}
    for name, data in codecs.items():
        plan = plan_codec(from_mapping(CodecRecipe, data), Cluster())
        assert plan["memory"][0]["fits"] and plan["run"]["hours"] > 0, name


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "codec/sprites-tiny", "--gpu", "a100", "--price", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 x a100 (312 TFLOP/s" in printed and "17x32x32: 320 codes" in printed and "ZeRO 0, float32" in printed
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clip"]["size"] == [17, 32, 32]
    assert main([*command, "--gpus", "7"]) == 2
    assert "cannot be shared by 7 GPUs" in capsys.readouterr().err
