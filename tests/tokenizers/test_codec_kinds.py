"""The configurations of all kinds of codec: saved, loaded, in recipes, as presets, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tokenizers.lively import ALL_KINDS, NEW_KINDS, noise, smallest_codec
from tokvid.cli.info import describe
from tokvid.config import from_mapping, to_mapping
from tokvid.errors import ConfigError
from tokvid_tokenizers import CodecConfig, FactorisedCodecConfig, TransformerCodecConfig, load_codec
from tokvid_tokenizers.codec_folder import CONFIG_FILE
from tokvid_tokenizers.presets import PRESETS, preset
from tokvid_tokenizers.quantizers import KLConfig, LFQConfig, QuantizerConfig, ResidualConfig, build_quantizer
from tokvid_tokenizers.training_config import CodecRecipe

SIZE = 12
QUANTIZERS: dict[str, QuantizerConfig] = {
    "kl": KLConfig(dim=3),
    "lfq": LFQConfig(codebook_size=16),
    "residual": ResidualConfig(depth=2, quantizer=LFQConfig(codebook_size=8)),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", NEW_KINDS)
def test_any_quantizer_fits(kind: str, quantizer: str) -> None:
    codec = smallest_codec(config=dataclasses.replace(NEW_KINDS[kind], quantizer=QUANTIZERS[quantizer]))
    frames = noise(2, 3, 6, 8, 8)
    output = codec(frames)
    assert output.frames.shape == frames.shape and torch.isfinite(output.frames).all()
    assert output.quantizer.codes.shape == (2, codec.num_codebooks, 3, 2, 2)
    assert codec.decode_latents(codec.encode_latents(frames), num_frames=6).shape == frames.shape


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    first = smallest_codec(config=NEW_KINDS[kind])
    first.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert again.config == first.config and again.codec_id == first.codec_id
    frames = noise(1, 3, 6, SIZE, SIZE)
    assert torch.equal(again.encode(frames), first.encode(frames))
    data = json.loads((tmp_path / CONFIG_FILE).read_text(encoding="utf-8"))
    assert data["kind"] == first.config.kind
    for change, words in [
        ({"kind": "convolutions"}, "'kind' is 'convolutions'"),
        ({"format_version": 2}, "codec format"),
    ]:
        (tmp_path / CONFIG_FILE).write_text(json.dumps(data | change), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"{CONFIG_FILE}: .*{words}"):
            load_codec(tmp_path)


def test_what_was_saved_before_there_were_kinds_is_of_the_first(tmp_path: Path) -> None:
    smallest_codec().save_pretrained(tmp_path)
    data = json.loads((tmp_path / CONFIG_FILE).read_text(encoding="utf-8"))
    assert data.pop("kind") == "shift"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(data), encoding="utf-8")
    assert load_codec(tmp_path).codec_id == smallest_codec().codec_id
    data["chanels"] = data.pop("channels")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key 'chanels': did you mean 'channels'"):
        load_codec(tmp_path)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_recipes_take_every_kind(kind: str) -> None:
    plain = CodecRecipe(output="runs", codec=ALL_KINDS[kind])
    assert from_mapping(CodecRecipe, json.loads(json.dumps(to_mapping(plain)))) == plain
    short = {"output": "runs", "codec": {"kind": kind, "stream_block": 2}}
    assert from_mapping(CodecRecipe, short).codec == type(ALL_KINDS[kind])(stream_block=2)
    assert isinstance(from_mapping(CodecRecipe, {"output": "runs", "codec": {"patch": 2}}).codec, CodecConfig)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (FactorisedCodecConfig, {"temporal_stride": 8}, "true 2 times.*stride of 4, but temporal_stride is 8"),
        (FactorisedCodecConfig, {"temporal_stride": 3}, "temporal_stride is 3"),
        (FactorisedCodecConfig, {"halves_time": (True, True)}, "channels and halves_time need one entry.*got 3 and 2"),
        (FactorisedCodecConfig, {"channels": (16, 32)}, "need one entry a resolution, got 2, 3 and 3"),
        (FactorisedCodecConfig, {"channels": (16, 4, 8)}, "8 or more"),
        (FactorisedCodecConfig, {"decoder_blocks": (1, -1, 2)}, "must not be negative"),
        (FactorisedCodecConfig, {"patch": 0}, "strides must be positive"),
        (FactorisedCodecConfig, {"stream_block": 0}, "stream_block must be at least 1"),
        (FactorisedCodecConfig, {"format_version": 2}, "reads codec format 1, got 2"),
        (TransformerCodecConfig, {"temporal_stride": 0}, "strides must be positive"),
        (TransformerCodecConfig, {"channels": 100}, "multiple of 4 for each of 6 heads.*got 100"),
        (TransformerCodecConfig, {"channels": 0}, "got 0"),
        (TransformerCodecConfig, {"heads": 0}, "heads must be at least 1"),
        (TransformerCodecConfig, {"temporal_window": 0}, "temporal_window must be at least 1"),
        (TransformerCodecConfig, {"spatial_window": 1}, "at least 2 cells, or null for the whole picture, got 1"),
        (TransformerCodecConfig, {"encoder_blocks": -1}, "encoder_blocks must be at least 0"),
        (TransformerCodecConfig, {"expansion": 0}, "expansion must be at least 1"),
        (TransformerCodecConfig, {"format_version": 2}, "reads codec format 1, got 2"),
    ],
)
def test_an_impossible_configuration_is_refused(kind: type[Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**changes)


@pytest.mark.parametrize("name", PRESETS)
def test_info_knows_every_preset(name: str) -> None:
    facts = describe(f"preset:{name}", "17x256x256")
    assert facts["gmac"]["total"] > 0 and facts["parameters"] > 0
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("name", "temporal_stride", "spatial_stride"),
    [("quality", 4, 8), ("transformer", 4, 8), ("compact", 4, 16), ("long", 8, 8), ("image", 1, 8)],
)
def test_the_other_presets(name: str, temporal_stride: int, spatial_stride: int) -> None:
    config = preset(name)
    assert (config.temporal_stride, config.spatial_stride) == (temporal_stride, spatial_stride)
    assert build_quantizer(config.quantizer).codebook_size == 64000
