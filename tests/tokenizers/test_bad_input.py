"""What is no frame, code or latent is refused in one line at every door, and a stream outlives what it refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.tokenizers.lively import SMALLEST, noise, smallest_codec
from tokvid.errors import ModelError, ShapeError
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.codec import _is_finite
from tokvid_tokenizers.quantizers import KLConfig, ResidualConfig, SimVQConfig, VQConfig

Door = Callable[[VideoCodec, Tensor], object]
TILE = (16, 16)


def stream_encode(codec: VideoCodec, frames: Tensor, tile: tuple[int, int] | None = None) -> Tensor:
    with codec.stream_encoder(tile=tile) as stream:
        return torch.cat([stream.push(frames), stream.finish()], dim=2)


def stream_decode(codec: VideoCodec, codes: Tensor, tile: tuple[int, int] | None = None) -> Tensor:
    with codec.stream_decoder(tile=tile) as stream:
        return torch.cat([stream.push(codes), stream.finish()], dim=2)


ENCODERS: dict[str, Door] = {
    "encode": lambda codec, frames: codec.encode(frames),
    "encode in tiles": lambda codec, frames: codec.encode(frames, tile=TILE),
    "encode_latents": lambda codec, frames: codec.encode_latents(frames),
    "stream": stream_encode,
    "stream in tiles": lambda codec, frames: stream_encode(codec, frames, TILE),
    "forward": lambda codec, frames: codec(frames),
    "calibrate": lambda codec, frames: codec.calibrate(frames),
}
DECODERS: dict[str, Door] = {
    "decode": lambda codec, codes: codec.decode(codes),
    "decode in tiles": lambda codec, codes: codec.decode(codes, tile=TILE),
    "stream": stream_decode,
    "stream in tiles": lambda codec, codes: stream_decode(codec, codes, TILE),
    "dequantize": lambda codec, codes: codec.quantizer.dequantize(codes),
}

FRAMES = noise(1, 3, 5, 16, 16)
CODES = torch.zeros(1, 1, 2, 4, 4, dtype=torch.int64)


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    return smallest_codec()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (FRAMES.where(FRAMES < 0.99, torch.nan), "NaN or infinite"),
        (FRAMES.where(FRAMES < 0.99, torch.inf), "NaN or infinite"),
        (FRAMES.where(FRAMES > -0.99, -torch.inf), "NaN or infinite"),
        ((FRAMES + 1) * 127.5, r"\[-1, 1\], got values from .* to 255"),
        (((FRAMES + 1) * 127.5).to(torch.uint8), "torch.uint8; use tokvid.frames.to_model"),
        (FRAMES.transpose(1, 2), "permute it"),
        (FRAMES.movedim(1, -1), r"expected frames \[B,3,T,H,W\], got \[1, 5, 16, 16, 3\]"),
        (FRAMES[:, :1], r"expected frames \[B,3,T,H,W\], got \[1, 1, 5, 16, 16\]"),
        (FRAMES[0], r"expected frames \[B,3,T,H,W\], got \[3, 5, 16, 16\]"),
        (FRAMES[..., :10], "multiples of 4, got 16x10"),
        (FRAMES[..., :6, :], "multiples of 4, got 6x16"),
        (FRAMES[..., :1, :1], "multiples of 4, got 1x1"),
        (FRAMES[:0], "must not be empty"),
        (FRAMES[:, :, :0], "must not be empty"),
        (FRAMES[..., :0], "must not be empty"),
        (FRAMES.double(), "torch.float64.*torch.float32"),
        (FRAMES.half(), "torch.float16.*torch.float32"),
    ],
)
@pytest.mark.parametrize("door", ENCODERS)
def test_frames_that_cannot_be_encoded_are_refused(codec: VideoCodec, door: str, frames: Tensor, words: str) -> None:
    before = codec.codec_id
    with pytest.raises(ShapeError, match=words) as caught:
        ENCODERS[door](codec, frames)
    assert "\n" not in str(caught.value)
    assert codec.codec_id == before


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (CODES + 75, r"\[0, 75\), got values from 75 to 75"),
        (CODES - 1, r"\[0, 75\), got values from -1 to -1"),
        (CODES.expand(-1, 2, -1, -1, -1), r"expected codes \[B,1,t,h,w\], got \[1, 2, 2, 4, 4\]"),
        (CODES[:, :0], r"expected codes \[B,1,t,h,w\], got \[1, 0, 2, 4, 4\]"),
        (CODES[0], r"expected codes \[B,1,t,h,w\], got \[1, 2, 4, 4\]"),
        (CODES[:0], r"expected codes \[B,1,t,h,w\], got \[0, 1, 2, 4, 4\]"),
        (CODES[:, :, :0], r"expected codes \[B,1,t,h,w\], got \[1, 1, 0, 4, 4\]"),
        (CODES.int(), "expected int64 codes, got torch.int32"),
        (CODES.float(), "expected int64 codes, got torch.float32"),
    ],
)
@pytest.mark.parametrize("door", DECODERS)
def test_codes_that_cannot_be_decoded_are_refused(codec: VideoCodec, door: str, codes: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        DECODERS[door](codec, codes)


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        (noise(1, 4, 2, 2, 2), r"expected latents \[B,3,t,h,w\], got \[1, 4, 2, 2, 2\]"),
        (noise(3, 2, 2, 2), r"expected latents \[B,3,t,h,w\], got \[3, 2, 2, 2\]"),
        (noise(1, 3, 0, 2, 2), r"expected latents \[B,3,t,h,w\], got \[1, 3, 0, 2, 2\]"),
        (noise(1, 3, 2, 2, 2).long(), "expected float latents, got torch.int64"),
        (noise(1, 3, 2, 2, 2) / 0, "NaN or infinite"),
        (noise(1, 3, 2, 2, 2).sqrt(), "NaN or infinite"),
    ],
)
def test_latents_that_cannot_be_decoded_are_refused(codec: VideoCodec, latents: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        codec.decode_latents(latents)


@pytest.mark.parametrize("pushed", [0, 1, 4, 20])
@pytest.mark.parametrize("wrong", ["type", "size", "batch", "NaN"])
def test_a_stream_goes_on_after_what_it_refused(codec: VideoCodec, pushed: int, wrong: str) -> None:
    """Also a first piece, and one that would only have waited for its block."""
    frames = noise(1, 3, 41, 16, 16)
    piece = frames[:, :, :1]
    refused = {
        "type": piece.double(),
        "size": piece[..., :8] if pushed else piece[..., :6],
        "batch": piece.expand(2, -1, -1, -1, -1),
        "NaN": piece * torch.nan,
    }
    with codec.stream_encoder() as stream:
        codes = [stream.push(frames[:, :, :pushed])] if pushed else []
        with pytest.raises(ShapeError):
            stream.push(refused[wrong])
        codes += [stream.push(frames[:, :, pushed:]), stream.finish()]
    assert torch.equal(torch.cat(codes, dim=2), codec.encode(frames))


def test_a_stream_that_was_stopped_within_a_block_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers remember the block and others do not: codes after that would be wrong and look right."""
    codec = smallest_codec()
    with codec.stream_encoder() as stream:
        stream.push(noise(1, 3, 1, 16, 16))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(codec.encoder.head, "forward", interrupted)
            stream.push(noise(1, 3, 16, 16, 16))
        with pytest.raises(ModelError, match="is finished"):
            stream.push(noise(1, 3, 16, 16, 16))


def interrupted(latents: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "quantizer",
    [SMALLEST.quantizer, VQConfig(codebook_size=8, dim=3), SimVQConfig(codebook_size=8, dim=3), ResidualConfig()],
    ids=lambda config: config.kind,
)
def test_a_codec_that_computes_no_numbers_gives_no_codes(quantizer: VQConfig) -> None:
    """The nearest code to NaN is as good as any."""
    codec = smallest_codec(config=dataclasses.replace(SMALLEST, quantizer=quantizer))
    with torch.no_grad():
        codec.encoder.head.weight.fill_(torch.nan)
        codec.decoder.head.project.weight.fill_(torch.inf)
    codes = torch.zeros(1, codec.num_codebooks, 2, 4, 4, dtype=torch.int64)
    for door in (codec.encode, lambda frames: stream_encode(codec, frames)):
        with pytest.raises(ModelError, match="the codec's latents are NaN or infinite: its weights are damaged"):
            door(FRAMES)
    for door in (codec.decode, lambda codes: stream_decode(codec, codes)):
        with pytest.raises(ModelError, match="the codec's frames are NaN or infinite"):
            door(codes)


def test_a_type_too_narrow_for_the_weights_is_said() -> None:
    codec = smallest_codec()
    with torch.no_grad():
        codec.encoder.head.weight.mul_(1e5)
    codec.encode(FRAMES)
    with pytest.raises(ModelError, match=r"too large for torch.float16; use float32"):
        codec.half().encode(FRAMES.half())


def test_one_number_that_is_none_is_found_wherever_it_is() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        values = noise(2, 3)
        assert _is_finite(values)
        values[1, 1] = value
        assert not _is_finite(values)


def test_a_continuous_codec_says_that_it_has_no_codes() -> None:
    codec = smallest_codec(config=dataclasses.replace(SMALLEST, quantizer=KLConfig(dim=3)))
    doors: list[Callable[[], object]] = [
        lambda: codec.encode(FRAMES),
        lambda: codec.decode(CODES),
        codec.stream_encoder,
        codec.stream_decoder,
    ]
    for door in doors:
        with pytest.raises(ModelError, match="has no codes: use encode_latents and decode_latents"):
            door()
