"""Tiles give what whole frames give where their halo is as wide as the network sees, and streams of tiles the same.

How far a network sees is found by gradients, so that the formula has something to agree with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tokenizers.lively import ALL_KINDS, FACTORISED, LINEAR, SMALLEST, TRANSFORMER, noise, settled, smallest_codec
from tests.tokenizers.test_files import StoppedError, moving
from tests.tokenizers.test_streaming import CUTS, cut
from tokvid.codes_file import CodesFile
from tokvid.errors import CheckpointError, DataError, ModelError, ShapeError
from tokvid.video import Video, probe_video, write_video
from tokvid_tokenizers import TransformerCodecConfig
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.files import decode_file, encode_file
from tokvid_tokenizers.presets import PRESETS
from tokvid_tokenizers.quantizers import FSQConfig
from tokvid_tokenizers.tiling import cells_apart, decoder_reach, decoder_tiling, encoder_reach, encoder_tiling

TINY: dict[str, AnyCodecConfig] = {
    **ALL_KINDS,
    "two resolutions": dataclasses.replace(SMALLEST, channels=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(2, 0)),
    "key frames": dataclasses.replace(SMALLEST, key_frames=True, stream_block=1),
    "local encoder": dataclasses.replace(SMALLEST, local_encoder=True),
    **LINEAR,
    "factorised at three resolutions": dataclasses.replace(
        FACTORISED,
        patch=1,
        channels=(8, 8, 8),
        encoder_blocks=(0, 1, 1),
        decoder_blocks=(1, 0, 1),
        halves_time=(False, True, True),
    ),
    "odd windows": dataclasses.replace(TRANSFORMER, spatial_window=3, encoder_blocks=3, decoder_blocks=4),
}


def narrow(config: AnyCodecConfig) -> AnyCodecConfig:
    """As few channels as can be: how far a network sees does not depend on them."""
    few: dict[str, object] = {"quantizer": FSQConfig(levels=(5, 5, 3))}
    if isinstance(config, TransformerCodecConfig):
        few |= {"channels": 8, "heads": 2, "expansion": 1}
    else:
        few |= {"channels": (8,) * len(config.channels)}
    return dataclasses.replace(config, **few)  # type: ignore[arg-type]


EVERY = {**TINY, **{f"preset {name}": narrow(config) for name, config in PRESETS.items()}}


def reaches(config: AnyCodecConfig) -> tuple[int, int]:
    encoder, decoder = encoder_reach(config), decoder_reach(config)
    assert encoder is not None and decoder is not None
    return encoder, decoder


def farthest(gradient: Tensor, cell: int, first: int, last: int) -> int:
    """The most cells beyond ``first`` to ``last`` at which any of ``gradient`` [B,C,T,h*cell,w*cell] is not zero."""
    seen = gradient.abs().sum(dim=(0, 1, 2))
    rows, columns = (torch.nonzero(seen.sum(dim=dim)).flatten() // cell for dim in (1, 0))
    places = torch.cat([rows, columns])
    return max(first - int(places.min()), int(places.max()) - (last - 1))


@pytest.mark.parametrize("name", EVERY)
def test_a_network_sees_as_far_as_is_said(name: str) -> None:
    config = EVERY[name]
    codec = smallest_codec(config=config).double()
    stride, apart = codec.spatial_stride, cells_apart(config)
    for reach, encodes in zip(reaches(config), (True, False), strict=True):
        before = -(-(reach + 1) // apart) * apart
        own = slice(before, before + apart)
        side = 2 * before + apart
        if encodes:
            seen = noise(1, 3, 1 + codec.temporal_stride, side * stride, side * stride).double().requires_grad_()
            kept = codec.encoder(seen)[..., own, own]
        else:
            seen = noise(1, codec.quantizer.dim, 2, side, side).double().requires_grad_()
            pixels = slice(own.start * stride, own.stop * stride)
            kept = codec.decoder(seen)[..., pixels, pixels]
        (gradient,) = torch.autograd.grad((kept * noise(*kept.shape, seed=1)).sum(), seen)
        assert farthest(gradient, stride if encodes else 1, own.start, own.stop) == reach


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(TINY)),
    grid=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    more=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    num_frames=st.integers(1, 18),
    batch=st.integers(1, 2),
)
def test_tiles_are_whole_frames(
    name: str, grid: tuple[int, int], more: tuple[int, int], num_frames: int, batch: int
) -> None:
    codec = smallest_codec(config=TINY[name])
    apart, stride = cells_apart(codec.config), codec.spatial_stride
    least = max(1, *(-(-reach // apart) for reach in reaches(codec.config)))
    tile = ((least + more[0]) * apart * stride, (least + more[1]) * apart * stride)
    frames = noise(batch, 3, num_frames, grid[0] * stride, grid[1] * stride)
    with torch.no_grad():
        latents, codes = codec.encode_latents(frames), codec.encode(frames)
        torch.testing.assert_close(codec.encode_latents(frames, tile=tile), latents, atol=1e-5, rtol=0)
        sure = settled(codec, latents)
        assert torch.equal(codec.encode(frames, tile=tile)[sure], codes[sure])
        torch.testing.assert_close(
            codec.decode(codes, num_frames, tile=tile), codec.decode(codes, num_frames), atol=1e-5, rtol=0
        )
        unclipped = codec.decode_latents(latents, tile=tile)
    torch.testing.assert_close(unclipped, codec.decode_latents(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(set(TINY) - {"local encoder"}))
def test_a_halo_that_is_smaller_is_seen(name: str) -> None:
    """In float64, where rounding is far below what the farthest cell says."""
    codec = smallest_codec(config=TINY[name]).double()
    stride, apart = codec.spatial_stride, cells_apart(codec.config)
    encoder, decoder = reaches(codec.config)
    side = -(-max(encoder, decoder) // apart) * apart
    tile = (side * stride, side * stride)
    frames = noise(1, 3, 5, 3 * side * stride, 3 * side * stride).double()
    with torch.no_grad():
        latents = codec.encode_latents(frames)
        pictures = codec.decode_latents(latents)
        off = [
            (
                float((codec.encode_latents(frames, tile=tile, halo=encoder - less) - latents).abs().max()),
                float((codec.decode_latents(latents, tile=tile, halo=decoder - less) - pictures).abs().max()),
            )
            for less in (0, apart)
        ]
    assert max(off[0]) < 1e-12
    assert min(off[1]) > 1e-9


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(TINY)),
    num_frames=st.integers(1, 40),
    lengths=CUTS,
    halo=st.sampled_from([None, 0, 1]),
)
def test_a_stream_of_tiles_is_the_whole_in_tiles_to_the_last_bit(
    name: str, num_frames: int, lengths: list[int], halo: int | None
) -> None:
    codec = smallest_codec(config=TINY[name])
    stride, apart = codec.spatial_stride, cells_apart(codec.config)
    side = max(1, *(-(-reach // apart) for reach in reaches(codec.config))) * apart
    tile, cells = (side * stride, (side + apart) * stride), None if halo is None else halo * apart
    frames = noise(2, 3, num_frames, (side + 1) * stride, (2 * side + 3) * stride)
    codes = codec.encode(frames, tile=tile, halo=cells)
    with codec.stream_encoder(2, tile=tile, halo=cells) as stream:
        pieces = [*(stream.push(piece) for piece in cut(frames, lengths)), stream.finish()]
    assert torch.equal(torch.cat(pieces, dim=2), codes)
    with codec.stream_decoder(2, tile=tile, halo=cells) as decoder:
        pieces = [*(decoder.push(piece) for piece in cut(codes, lengths)), decoder.finish()]
    assert torch.equal(torch.cat(pieces, dim=2), codec.decode(codes, tile=tile, halo=cells))


def test_a_tile_larger_than_the_picture_is_the_whole_picture() -> None:
    codec = smallest_codec()
    frames = noise(1, 3, 9, 16, 24)
    assert torch.equal(codec.encode_latents(frames, tile=(400, 24)), codec.encode_latents(frames))


def test_gradients_go_through_tiles() -> None:
    codec = smallest_codec().double()
    frames = noise(1, 3, 2, 24, 24).double().requires_grad_()
    whole, tiled = (
        torch.autograd.grad(codec.encode_latents(frames, tile=tile).square().sum(), frames)[0]
        for tile in (None, (12, 12))
    )
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ALL_KINDS)
@pytest.mark.parametrize("stop", [0, 1, 5, 17, 30])
def test_a_stream_of_tiles_goes_on_from_its_state(name: str, stop: int) -> None:
    codec = smallest_codec(config=ALL_KINDS[name])
    tile = (16, 16)
    frames = noise(1, 3, 37, 24, 40)
    with codec.stream_encoder(tile=tile) as stream:
        codes = [stream.push(frames[:, :, :stop])] if stop else []
        state = stream.state()
    with codec.stream_encoder(tile=tile) as stream:
        stream.restore(state)
        codes += [stream.push(frames[:, :, stop:]), stream.finish()]
    assert torch.equal(torch.cat(codes, dim=2), codec.encode(frames, tile=tile))


def test_a_state_of_other_tiles_is_refused() -> None:
    codec = smallest_codec()
    frames = noise(1, 3, 5, 24, 48)
    states = {}
    for tile in (None, (16, 16), (24, 24)):
        with codec.stream_encoder(tile=tile) as stream:
            stream.push(frames)
            states[tile] = stream.state()
    assert len(states[None]) < len(states[24, 24]) < len(states[16, 16])
    for tile, other in ((None, (16, 16)), ((16, 16), None), ((16, 16), (24, 24)), ((24, 24), (16, 16))):
        with codec.stream_encoder(tile=tile) as stream, pytest.raises(CheckpointError, match="other tiles"):
            stream.restore(states[other])


WHOLE_PICTURES = dataclasses.replace(TRANSFORMER, spatial_window=None)


@pytest.mark.parametrize(
    ("config", "tile", "halo", "words"),
    [
        (SMALLEST, (16, 18), None, "multiples of 4, got 16x18"),
        (SMALLEST, (0, 16), None, "positive multiples of 4"),
        (TRANSFORMER, (12, 16), None, "multiples of 8 (2 cells, a window of its attention), got 12x16"),
        (SMALLEST, (8, 16), None, "make them 12x12 or more"),
        (SMALLEST, (16, 16), 5, "make them 20x20 or more"),
        (SMALLEST, (16, 16), -1, "halo must be 0 or"),
        (TRANSFORMER, (16, 16), 1, "multiple of 2 cells"),
        (SMALLEST, None, 2, "give their size too"),
        (WHOLE_PICTURES, (16, 16), None, "give a halo"),
    ],
)
def test_tiles_that_cannot_be_are_refused(
    config: AnyCodecConfig, tile: tuple[int, int] | None, halo: int | None, words: str
) -> None:
    codec = smallest_codec(config=config)
    with pytest.raises(ModelError) as error:
        codec.stream_decoder(tile=tile, halo=halo)
    assert words in str(error.value)


def test_what_is_no_frame_or_code_is_refused_in_tiles_too() -> None:
    codec = smallest_codec()
    with pytest.raises(ShapeError, match="multiples of 4"):
        codec.encode(noise(1, 3, 1, 18, 16), tile=(16, 16))
    with pytest.raises(ShapeError, match="codes must lie"):
        codec.decode(torch.full((1, 1, 1, 2, 2), 75), tile=(16, 16))


def test_attention_to_whole_pictures_has_tiles_with_seams_only() -> None:
    codec = smallest_codec(config=WHOLE_PICTURES)
    frames = noise(1, 3, 1, 32, 32)
    whole, tiled = codec.encode_latents(frames), codec.encode_latents(frames, tile=(16, 16), halo=2)
    assert not torch.allclose(whole, tiled, atol=1e-4)
    assert not encoder_tiling(WHOLE_PICTURES, (16, 16), 2).exact


def test_only_halos_as_wide_as_the_reach_are_exact() -> None:
    encoder, decoder = reaches(SMALLEST)
    assert encoder_tiling(SMALLEST, (16, 16)).exact and encoder_tiling(SMALLEST, None).exact
    assert encoder_tiling(SMALLEST, (16, 16), encoder).exact and not encoder_tiling(SMALLEST, (16, 16), 1).exact
    assert decoder_tiling(SMALLEST, (16, 16), decoder).exact and not decoder_tiling(SMALLEST, (16, 16), 2).exact


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, Video(frames=moving(100, 30, 52), fps=12.5))
    return path


def test_files_go_there_and_back_in_tiles(clip: Path, tmp_path: Path) -> None:
    codec = smallest_codec()
    encode_file(codec, clip, tmp_path / "whole.tokvid")
    encode_file(codec, clip, tmp_path / "tiles.tokvid", tile=(16, 16))
    encode_file(codec, clip, tmp_path / "seams.tokvid", tile=(16, 16), halo=0)
    whole, tiles, seams = (CodesFile(tmp_path / f"{name}.tokvid") for name in ("whole", "tiles", "seams"))
    # Rounding may tip a code in some hundred thousand.
    assert (whole.read() != tiles.read()).mean() < 1e-3 < (whole.read() != seams.read()).mean()
    assert tiles.facts == whole.facts
    assert seams.facts.made_by == {"tile": "16x16", "halo": 0}
    decode_file(codec, whole.path, tmp_path / "again.mp4", tile=(16, 32))
    info = probe_video(tmp_path / "again.mp4")
    assert (info.num_frames, info.height, info.width) == (100, 30, 52)


def test_an_interrupted_encoding_in_tiles_goes_on(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokvid_tokenizers.files._KEEP_EVERY", 2)
    codec = smallest_codec()
    encode_file(codec, clip, tmp_path / "whole.tokvid", tile=(16, 16))

    def stop(done: int, total: int) -> None:
        if done == 65:
            raise StoppedError

    with pytest.raises(StoppedError):
        encode_file(codec, clip, tmp_path / "clip.tokvid", tile=(16, 16), progress=stop)
    others: list[dict[str, tuple[int, int] | int]] = [{}, {"tile": (16, 24)}, {"tile": (16, 16), "halo": 1}]
    for other in others:
        with pytest.raises(DataError, match="another encoding"):
            encode_file(codec, clip, tmp_path / "clip.tokvid", **other)  # type: ignore[arg-type]
    seen: list[int] = []
    encode_file(codec, clip, tmp_path / "clip.tokvid", tile=(16, 16), progress=lambda done, _: seen.append(done))
    assert seen[0] == 65
    assert (tmp_path / "clip.tokvid").read_bytes() == (tmp_path / "whole.tokvid").read_bytes()
