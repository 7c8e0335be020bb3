"""Codecs of VidTok: the numbers of diffusers and of VidTok's own code, streams, and the files they come in."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers import AutoencoderVidTok
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tokenizers.lively import noise, smallest_codec
from tests.tokenizers.tiny_run import recipe
from tokvid.cli import main as command
from tokvid.cli.info import describe
from tokvid.data.clips import ClipArray
from tokvid.errors import CheckpointError, ConfigError, ModelError, ShapeError, TokvidError
from tokvid_tokenizers import VideoCodec, VidTokConfig, list_codecs, load_codec
from tokvid_tokenizers.published.vidtok_weights import convert_vidtok
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig
from tokvid_tokenizers.training import train_codec

Network = TypeVar("Network", bound=nn.Module)
GOLDEN = load_file(Path(__file__).resolve().parents[1] / "golden" / "vidtok.safetensors")
"""What VidTok's own code gave (commit d6ad92d, randomly filled as by :func:`fill`), for :func:`golden_codec`."""
DEEP = {"ch_mult": [1, 2, 2, 2, 2], "spatial_ds": [0, 1, 2, 3], "spatial_us": [1, 2, 3, 4], "tempo_ds": [2, 3]}
# Every form in which codecs of VidTok were published, narrow.
PUBLISHED: dict[str, dict[str, Any]] = {
    "fsq 4x8x8": {},
    "kl 4x8x8": {"regularizer": "kl", "z_channels": 3},
    "fsq 4x16x16": DEEP,
    "fsq 8x8x8": {"tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3]},
    "kl 2x8x8": {"regularizer": "kl", "tempo_ds": [1], "tempo_us": [2]},
    "kl 4x4x4": {"regularizer": "kl", "spatial_ds": [1, 2], "spatial_us": [1, 2]},
    "fsq 4x8x8 not causal": {"is_causal": False},
    "kl 4x16x16 not causal": {"regularizer": "kl", "is_causal": False, **DEEP},
}


@torch.no_grad()
def fill(network: Network) -> Network:
    """Random weights that let every layer act, the same for the same names."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(network.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        scale, shift = (
            (0.7 / parameter[0].numel() ** 0.5, 0) if parameter.ndim > 1 else (0.1, name.endswith("norm.weight"))
        )
        parameter.copy_(drawn * scale + shift)
    return network.eval()


def of_diffusers(form: str) -> AutoencoderVidTok:
    facts = {"regularizer": "fsq", "z_channels": 4, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, **PUBLISHED[form]}
    discrete = facts["regularizer"] == "fsq"
    return fill(AutoencoderVidTok(ch=8, double_z=not discrete, codebook_size=8 ** facts["z_channels"], **facts))


def saved_by_diffusers(form: str, folder: Path) -> AutoencoderVidTok:
    theirs = of_diffusers(form)
    theirs.save_pretrained(folder)
    return theirs


def a_codec(version: str = "1.1", *, causal: bool = True, **facts: Any) -> VideoCodec:
    quantizer = facts.pop("quantizer", FSQConfig(levels=(8, 8, 8)))
    config = VidTokConfig(
        version=version,  # type: ignore[arg-type]
        causal=causal,
        channels=(8, 8, 16, 16),
        blocks=1,
        quantizer=quantizer,
        **facts,
    )
    return fill(VideoCodec(config))


@pytest.mark.parametrize("form", PUBLISHED)
@torch.no_grad()
def test_it_computes_what_diffusers_does(form: str, tmp_path: Path) -> None:
    theirs = saved_by_diffusers(form, tmp_path)
    codec = load_codec(f"vidtok:{tmp_path}")
    assert codec.state_dict().keys() == theirs.state_dict().keys()
    assert describe(f"vidtok:{tmp_path}", "16x128x128")["kind"] == "vidtok"
    stride = theirs.temporal_compression_ratio
    frames = noise(2, 3, 1 + 2 * stride if codec.is_causal else 16, 2 * codec.spatial_stride, 3 * codec.spatial_stride)
    # As its forward does, which pads clips that it cannot take for lengths of its own.
    filled = torch.cat([frames[:, :, :1].expand(-1, -1, stride - 1 if codec.is_causal else 0, -1, -1), frames], dim=2)
    if codec.num_codebooks:
        latents, codes = theirs.encode(filled)
        assert torch.equal(codec.encode(frames)[:, 0], codes.long()) and len(codes.unique()) > 5
        decoded = codec.decode(codec.encode(frames), num_frames=frames.shape[2])
        assert codec.codebook_size == 8 ** latents.shape[1]
    else:
        latents = theirs.encode(filled).latent_dist.mode()
        torch.testing.assert_close(codec.encode_latents(frames), latents, atol=1e-4, rtol=0)
        decoded = codec.decode_latents(latents, num_frames=frames.shape[2]).clamp(-1, 1)
    expected = theirs.decode(latents)
    assert expected.std() > 0.05 and expected.shape == frames.shape
    torch.testing.assert_close(decoded, expected.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec(frames).frames, expected, atol=1e-4, rtol=0)  # without blocks, as in training


@pytest.mark.parametrize(
    ("name", "version", "causal"), [("1.0", "1.0", True), ("1.1", "1.1", True), ("1.0-not-causal", "1.0", False)]
)
@torch.no_grad()
def test_it_computes_what_vidtok_does(name: str, version: str, causal: bool) -> None:
    codec = a_codec(version, causal=causal, quantizer=KLConfig(dim=4))
    frames = torch.rand(1, 3, 16, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = codec.encode_latents(frames[:, :, : 13 if causal else 16])
    torch.testing.assert_close(latents, GOLDEN[f"{name}.latents"], atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.decode_latents(latents), GOLDEN[f"{name}.frames"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("block", [1, 3])
def test_streams_are_the_whole(version: str, block: int) -> None:
    codec = a_codec(version, stream_block=block)

    @settings(max_examples=8, deadline=None)
    @given(num_frames=st.integers(1, 40), lengths=st.lists(st.integers(0, 9), max_size=8), seed=st.integers(0, 3))
    def check(num_frames: int, lengths: list[int], seed: int) -> None:
        frames = noise(2, 3, num_frames, 16, 24, seed=seed)
        codes = codec.encode(frames)
        assert codes.shape == (2, 1, -(-(num_frames - 1) // 4) + 1, 2, 3)
        with codec.stream_encoder(2) as encoder, codec.stream_decoder(2) as decoder:
            assert torch.equal(joined(encoder, frames, lengths), codes)
            assert torch.equal(joined(decoder, codes, lengths), codec.decode(codes))

    def joined(stream: Any, clip: Tensor, lengths: list[int]) -> Tensor:
        pieces = clip.split([*capped(lengths, clip.shape[2])], dim=2)
        return torch.cat([*(stream.push(piece) for piece in pieces), stream.finish()], dim=2)

    check()
    # Against all at once, in another order of sums: what a block's end sees of the next one is there.
    frames = noise(1, 3, 41, 16, 16)
    torch.testing.assert_close(codec(frames).frames.clamp(-1, 1), codec.decode(codec.encode(frames)), atol=1e-5, rtol=0)


def capped(lengths: list[int], total: int) -> list[int]:
    """Lengths that sum to ``total``, none of them 0."""
    taken = []
    for length in [*lengths, total]:
        taken.append(min(length, total - sum(taken)))
    return [length for length in taken if length]


@pytest.mark.parametrize(("version", "first"), [("1.0", 5), ("1.1", 2)])
def test_how_far_a_decoder_looks_ahead(version: str, first: int) -> None:
    """Frames of latent frame 1 (1 to 4) do not depend on what comes later in 1.0; in 1.1 on the next latent frame."""
    codec = a_codec(version, quantizer=KLConfig(dim=3))
    latents, other = noise(1, 3, 4, 2, 2), noise(1, 3, 4, 2, 2, seed=1)
    whole, changed = (
        codec.decode_latents(each) for each in (latents, torch.cat([latents[:, :, :2], other[:, :, 2:]], dim=2))
    )
    equal = [torch.equal(whole[:, :, frame], changed[:, :, frame]) for frame in range(whole.shape[2])]
    assert equal.index(False) == first and not any(equal[5:])
    last = torch.cat([latents[:, :, :3], other[:, :, 3:]], dim=2)
    assert torch.equal(codec.decode_latents(last)[:, :, :5], whole[:, :, :5])
    # What is encoded never depends on what comes later.
    frames = noise(1, 3, 13, 16, 16)
    torch.testing.assert_close(
        codec.encode_latents(frames)[:, :, :2], codec.encode_latents(frames[:, :, :5]), atol=1e-5, rtol=0
    )


def test_what_is_not_causal_takes_whole_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = a_codec("1.0", causal=False)
    frames = noise(1, 3, 14, 16, 16)
    codes = codec.encode(frames)
    assert codes.shape == (1, 1, 4, 2, 2) and codec.grid_for(14, 16, 16).t == 4
    assert codec.decode(codes, num_frames=14).shape == frames.shape and codec.decode(codes).shape[2] == 16
    with pytest.raises(ShapeError, match="4 latent frames of 4 frames hold 13 to 16 frames, got num_frames=12"):
        codec.decode(codes, num_frames=12)
    for stream in (codec.stream_encoder, codec.stream_decoder):
        with pytest.raises(ModelError, match="need a causal codec, and this one is not"):
            stream()
    codec.save_pretrained(tmp_path / "codec")
    shards = ["tokenize", "sprites", str(tmp_path / "shards"), "--codec", str(tmp_path / "codec")]
    assert command.main(shards) == 2
    assert capsys.readouterr().err.startswith("error: code shards need a causal codec, and this one is not: ")
    assert load_codec(tmp_path / "codec").codec_id == codec.codec_id
    assert not load_codec(f"vidtok:{tmp_path / 'codec'}").is_causal


def lightning_file(path: Path, codec: VideoCodec, **more: Any) -> Path:
    """As VidTok's training saves it: the codec among its losses and averages."""
    state = {**codec.state_dict(), "loss.logvar": torch.zeros(()), "loss.discriminator.weight": torch.ones(3)}
    state["model_ema.num_updates"] = torch.tensor(1)
    torch.save({"epoch": 1, "global_step": 2, "state_dict": state, "optimizer_states": [{"state": {}}], **more}, path)
    return path


def test_a_file_of_its_training_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = a_codec("1.0")
    file = lightning_file(tmp_path / "vidtok_fsq_causal_488_512.ckpt", codec)
    assert command.main(["convert", f"vidtok:{file}", str(tmp_path / "codec")]) == 0
    assert "left out: 3 tensors" in capsys.readouterr().out
    again = load_codec(tmp_path / "codec")
    assert again.codec_id == codec.codec_id and again.config == codec.config
    assert sorted(path.name for path in (tmp_path / "codec").iterdir()) == ["config.json", "model.safetensors"]
    later = shutil.copy(file, tmp_path / "vidtok_fsq_causal_488_512_v1_1.ckpt")
    assert convert_vidtok(later)[0].config == a_codec("1.1").config
    mine = shutil.copy(file, tmp_path / "mine.ckpt")
    with pytest.raises(ModelError, match="does not say which version of VidTok it is"):
        convert_vidtok(mine)
    assert convert_vidtok(mine, version="1.1")[0].config == a_codec("1.1").config
    whole = lightning_file(tmp_path / "other.ckpt", a_codec("1.0", causal=False))
    assert not convert_vidtok(whole)[0].is_causal


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    file = lightning_file(tmp_path / "vidtok_fsq_causal_488_512.ckpt", a_codec("1.0"), callbacks=_Runs())
    assert command.main(["convert", f"vidtok:{file}", "codec"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tokvid runs nothing that a file says" in error and "getattr" in error
    assert not Path("was-run").exists() and not Path("codec").exists()
    plain = tmp_path / "plain.ckpt"
    plain.write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(TokvidError):
        convert_vidtok(plain)
    assert not Path("was-run").exists()


def without(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


def test_bad_files_are_named(tmp_path: Path) -> None:
    codec = a_codec("1.0")
    state, path = codec.state_dict(), tmp_path / "vidtok_fsq_causal_488_512.ckpt"

    def refused(state: Any, words: str, kind: type[Exception] = CheckpointError) -> None:
        torch.save(state, path)
        with pytest.raises(kind, match=words):
            convert_vidtok(path)

    refused({"state_dict": {}}, "holds no weights")
    refused({"epoch": 3}, "holds no weights")
    refused({"state_dict": {"a": torch.ones(1)}}, "no codec of VidTok: there is no tensor 'decoder.conv_in.weight'")
    refused({"state_dict": without("encoder.mid.attn_1.q.conv.bias", state)}, "1 missing .first: encoder.mid.attn_1.q")
    refused({"state_dict": {**state, "encoder.more": torch.ones(1)}}, "1 unknown .first: encoder.more")
    refused({"state_dict": {**state, "encoder.norm_out.norm.bias": torch.full((16,), torch.nan)}}, "NaN")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"is torn, or no file of torch\.save"):
        convert_vidtok(path)
    with pytest.raises(ModelError, match=r"there is no file .*nowhere\.ckpt"):
        convert_vidtok(tmp_path / "nowhere.ckpt")


def test_what_vidtok_names_must_be_one(tmp_path: Path) -> None:
    file = lightning_file(tmp_path / "a.ckpt", a_codec())
    with pytest.raises(ModelError, match="is a file: make a folder of it once, tokvid convert vidtok:"):
        load_codec(f"vidtok:{file}")
    with pytest.raises(ModelError, match=r"holds its weights in a\.ckpt, and reading that would run what it says"):
        load_codec(f"vidtok:{tmp_path}")
    smallest_codec().save_pretrained(tmp_path / "ours")
    with pytest.raises(ModelError, match="is a codec of kind 'shift', not of VidTok: leave vidtok: out"):
        load_codec(f"vidtok:{tmp_path / 'ours'}")
    with pytest.raises(ModelError, match="there is no folder"):
        load_codec("vidtok:nowhere")
    saved_by_diffusers("fsq 4x8x8", tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    assert config["_class_name"] == "AutoencoderVidTok"
    (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors is missing"):
        load_codec(f"vidtok:{tmp_path / 'theirs'}")
    save_file({"a": torch.ones(1)}, tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="holds no codec of VidTok"):
        load_codec(f"vidtok:{tmp_path / 'theirs'}")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"tempo_ds": (2, 3)}, "tempo_ds some of those"),
        ({"spatial_ds": (0, 1, 1)}, "must be some of the resolutions"),
        ({"tempo_us": (1,)}, "must double what the encoder halves"),
        ({"temporal_stride": 8}, "makes a temporal stride of 4"),
        ({"causal": False}, "not causal is of version 1.0"),
        ({"linear_path": True}, "no linear_path"),
        ({"patch": 2}, "a patch of 1"),
    ],
)
def test_configurations_that_it_never_had_are_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VidTokConfig(**facts)


def test_its_list_says_what_was_verified() -> None:
    codecs = list_codecs()
    assert (
        "diffusers" in codecs["vidtok:PATH-OR-REPO"]
        and "published weights were not tried" in codecs["vidtok:PATH-OR-REPO"]
    )
    assert all(codecs.values()) and "preset:base" in codecs


@pytest.mark.parametrize("causal", [True, False])
def test_its_training_goes_on_here(causal: bool, clips: tuple[ClipArray, ClipArray], tmp_path: Path) -> None:
    codec = a_codec("1.1" if causal else "1.0", causal=causal)
    codec.save_pretrained(tmp_path / "vidtok")
    plan = recipe(tmp_path / "run", steps=6, start_from=str(tmp_path / "vidtok"))
    plan = dataclasses.replace(plan, codec=codec.config)
    trained = train_codec(plan, *clips).codec
    assert trained.config == codec.config and trained.codec_id != codec.codec_id
    assert trained.state_dict().keys() == codec.state_dict().keys()
    plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, checkpoint_blocks=True))
    with pytest.raises(ConfigError, match=r"does not know training\.checkpoint_blocks: leave it out"):
        train_codec(plan, *clips)
