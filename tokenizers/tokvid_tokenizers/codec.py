"""The codec: encoder, quantizer and decoder, and the folder they are saved in.

A codec knows nothing of files of video, of data sets or of how it was trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokvid.across_processes import of_all_processes
from tokvid.atomic import atomic_folder
from tokvid.config import identity, to_mapping
from tokvid.errors import ModelError, ShapeError
from tokvid.frames import check_frames
from tokvid.grid import Grid
from tokvid.hub import HubOptions, PushOptions, local_folder, push_folder
from tokvid.hub_card import Run
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.codec_folder import (
    CONFIG_FILE,
    MODEL_TYPE,
    WEIGHTS_FILE,
    check_replaceable,
    load_exactly,
    read_config,
)
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.layers.resample import cut_blocks
from tokvid_tokenizers.networks import build_decoder, build_encoder
from tokvid_tokenizers.quantizers import QuantizerOutput, build_quantizer
from tokvid_tokenizers.quantizers.base import to_vectors
from tokvid_tokenizers.streaming import StreamDecoder, StreamEncoder, blocks_of
from tokvid_tokenizers.tiling import Step, Tiling, decoder_tiling, encoder_tiling

if TYPE_CHECKING:
    from tokvid_tokenizers.refiner import Refiner


@dataclass(frozen=True, kw_only=True)
class CodecOutput:
    """A reconstruction and what the quantizer said on the way."""

    frames: Tensor
    """``[B,3,T,H,W]``, as many frames as went in, not clipped to [-1, 1]."""
    quantizer: QuantizerOutput


class VideoCodec(nn.Module):
    """Turns frames ``[B,3,T,H,W]`` in [-1, 1] into codes ``[B,K,t,h,w]`` and back.

    With a ``tile`` of (H, W) pixels, multiples of the spatial stride (in a transformer of its attention's window),
    large frames are computed tile by tile, each with ``halo`` cells around it. Without a ``halo`` they are as many as
    the network sees, and the result is that of whole frames up to the rounding of sums; a smaller one costs less and
    shows seams. Raises :class:`ModelError` for tiles that the codec cannot have.
    """

    model_type = MODEL_TYPE

    def __init__(self, config: AnyCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = build_encoder(config, self.quantizer.encoded_dim)
        self.decoder = build_decoder(config, self.quantizer.dim)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def is_causal(self) -> bool:
        """Whether clips of any length go through block by block; if not, only whole ones do."""
        return self.config.is_causal

    @property
    def codebook_size(self) -> int:
        """Number of different codes in one codebook; 0 of a continuous codec."""
        return self.quantizer.codebook_size

    @property
    def num_codebooks(self) -> int:
        """K, the number of codes a cell carries; 0 of a continuous codec."""
        return self.quantizer.num_codebooks

    @property
    def temporal_stride(self) -> int:
        """Frames to one latent frame; of a causal codec, after the first."""
        return self.config.temporal_stride

    @property
    def spatial_stride(self) -> int:
        """Pixels of height and of width to one cell."""
        return self.config.spatial_stride

    @property
    def codec_id(self) -> str:
        """``tokvid-`` and 16 hexadecimal digits: a digest of the configuration and every weight.

        Language models store it. So a setting that codecs learn later counts only where it is not its default.
        """
        digest = hashlib.sha256(json.dumps(identity(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
        return f"tokvid-{digest.hexdigest()[:16]}"

    def grid_for(self, num_frames: int, height: int, width: int) -> Grid:
        """The latent grid of ``num_frames`` frames of ``height`` by ``width`` pixels; raises off the stride."""
        return self.config.grid_for(num_frames, height, width)

    def encode_latents(self, frames: Tensor, *, tile: tuple[int, int] | None = None, halo: int | None = None) -> Tensor:
        """Continuous latents ``[B,D,t,h,w]`` of frames ``[B,3,T,H,W]``, before the quantizer.

        The frames have the type of the codec's weights; under autocast any type that autocast converts.
        """
        return self.quantizer.latents_of(self._encoded(self.encoder, frames, encoder_tiling(self.config, tile, halo)))

    def unrounded_latents(self, frames: Tensor) -> Tensor:
        """What codes lose by rounding: latents float32 ``[B,D,t,h,w]`` where codebook vectors are, but not rounded.

        ``decode_latents`` of them is what the best refinement of the codes could give.
        """
        return self._encoded(self._unrounded_block, frames, encoder_tiling(self.config, None, None))

    def decode_latents(
        self,
        latents: Tensor,
        num_frames: int | None = None,
        *,
        tile: tuple[int, int] | None = None,
        halo: int | None = None,
    ) -> Tensor:
        """Frames ``[B,3,T,H,W]`` of latents ``[B,D,t,h,w]``, not clipped; ``T = num_frames`` or all they hold.

        Quantized latents are float32 also in a codec of another type, so they are brought to the type of the weights.
        """
        if latents.ndim != 5 or latents.shape[1] != self.quantizer.dim or 0 in latents.shape:
            raise ShapeError(f"expected latents [B,{self.quantizer.dim},t,h,w], got {list(latents.shape)}")
        if not latents.is_floating_point():
            raise ShapeError(f"expected float latents, got {latents.dtype}; codes go through decode")
        if not _is_finite(latents):
            raise ShapeError("latents hold NaN or infinite values")
        tiling = decoder_tiling(self.config, tile, halo)
        return self._decoded(self._decode_latent_block, latents, num_frames, tiling)

    def encode(self, frames: Tensor, *, tile: tuple[int, int] | None = None, halo: int | None = None) -> Tensor:
        """Codes int64 ``[B,K,t,h,w]`` of frames ``[B,3,T,H,W]`` in [-1, 1].

        Raises :class:`ShapeError` for frames that are none, :class:`ModelError` of a continuous codec, and where the
        latents are not finite.
        """
        self.check_discrete()
        return self._encoded(self.encode_block, frames, encoder_tiling(self.config, tile, halo))

    def decode(
        self,
        codes: Tensor,
        num_frames: int | None = None,
        *,
        tile: tuple[int, int] | None = None,
        halo: int | None = None,
    ) -> Tensor:
        """Frames ``[B,3,T,H,W]`` in [-1, 1] of codes ``[B,K,t,h,w]``.

        Without ``num_frames`` the last group is whole: ``1 + (t-1)*temporal_stride`` frames, ``t*temporal_stride`` of
        a codec that is not causal.
        """
        self.check_codes(codes)
        return self._decoded(self.decode_block, codes, num_frames, decoder_tiling(self.config, tile, halo))

    def stream_encoder(
        self, batch_size: int = 1, *, tile: tuple[int, int] | None = None, halo: int | None = None
    ) -> StreamEncoder:
        """A stream, entered with ``with``, that takes frames in pieces of any length and gives the codes of the whole.

        ``push(frames)`` gives the codes of the blocks that are full, ``finish()`` the rest. One codec serves any number
        of streams at once; each is bit for bit equal to :meth:`encode` of all its frames (same batch, size, tiles,
        type, device and threads).
        """
        return StreamEncoder(self, batch_size, encoder_tiling(self.config, tile, halo))

    def stream_decoder(
        self, batch_size: int = 1, *, tile: tuple[int, int] | None = None, halo: int | None = None
    ) -> StreamDecoder:
        """A stream, entered with ``with``, that takes codes in pieces of any length and gives the frames of the whole.

        ``push(codes)`` gives the frames of the blocks that are full, ``finish()`` the rest, as :meth:`decode` does.
        """
        return StreamDecoder(self, batch_size, decoder_tiling(self.config, tile, halo))

    def encode_block(self, frames: Tensor, past: Past) -> Tensor:
        """Codes of the next block of a clip, in the middle of which ``past`` stands; the inner step of encoding."""
        encoded = self.encoder(frames, past)
        # Rounded or compared, what is no number would become a code like any other.
        self._check_computed(encoded, "latents")
        output: QuantizerOutput = self.quantizer(encoded)
        return output.codes

    def decode_block(self, codes: Tensor, past: Past) -> Tensor:
        """Frames in [-1, 1] of the next block of a clip; the inner step of every decoding."""
        frames = self._decode_latent_block(self.quantizer.dequantize(codes), past)
        self._check_computed(frames, "frames")
        return frames.clamp(-1.0, 1.0)

    def check_frames(self, frames: Tensor) -> None:
        """Raise :class:`ShapeError` unless ``frames`` ``[B,3,T,H,W]`` are what this codec can encode."""
        check_frames(frames, self.spatial_stride)
        wanted, kind = self._dtype, frames.device.type
        # Autocast leaves float64 as it is.
        casts = torch.is_autocast_enabled(kind) and frames.dtype != torch.float64
        if frames.dtype != wanted and not casts:
            raise ShapeError(f"the frames are {frames.dtype}, the codec's weights {wanted}: use frames.to({wanted})")

    def check_codes(self, codes: Tensor) -> None:
        """Raise :class:`ShapeError` unless ``codes`` ``[B,K,t,h,w]`` are what this codec can decode."""
        self.check_discrete()
        self.quantizer.check_codes(codes)

    def check_causal(self, what: str) -> None:
        """Raise :class:`ModelError` where ``what`` needs a causal codec and this one is not."""
        if not self.is_causal:
            raise ModelError(f"{what} need a causal codec, and this one is not: encode and decode whole clips with it")

    def check_discrete(self) -> None:
        """Raise :class:`ModelError` of a continuous codec."""
        if not self.num_codebooks:
            raise ModelError("a continuous codec has no codes: use encode_latents and decode_latents")

    def forward(self, frames: Tensor, unrounded: Tensor | None = None) -> CodecOutput:
        """Reconstruct frames ``[B,3,T,H,W]``; what training calls. All frames at once, which is faster than blocks.

        Of the clips that ``unrounded``, bool ``[B]``, names, the decoder sees the latents before they are rounded.
        """
        self.check_frames(frames)
        encoded = self.encoder(frames)
        quantizer: QuantizerOutput = self.quantizer(encoded)
        latents = quantizer.quantized
        if unrounded is not None:
            latents = torch.where(unrounded[:, None, None, None, None], self._unrounded(encoded), latents)
        decoded: Tensor = self.decoder(latents.to(self._dtype))
        return CodecOutput(frames=decoded[:, :, : frames.shape[2]], quantizer=quantizer)

    @torch.no_grad()
    def calibrate(self, frames: Tensor) -> None:
        """Bring the latents of ``frames`` to mean 0 and deviation 1 a channel; start a linear path on these frames.

        Data-dependent initialisation (Salimans and Kingma 2016), for a codec that is about to be trained: without it
        the first latents differ so little between positions that a scalar quantizer uses one or two of its levels. Of
        several processes each gives its part of the clips.
        """
        self.check_frames(frames)
        if self.config.linear_path:
            self._start_linear_path(frames)
            return
        latents = of_all_processes(self.encoder(frames))
        _check_positions(latents[:, 0].numel(), frames)
        mean = latents.mean(dim=(0, 2, 3, 4))
        scale = latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-4).reciprocal()
        head = self.encoder.head
        head.weight.mul_(scale.view(-1, *[1] * (head.weight.ndim - 1)))
        assert head.bias is not None
        head.bias.sub_(mean).mul_(scale)

    def _start_linear_path(self, frames: Tensor) -> None:
        """Make the codec the linear one of principal components, to which its networks add nothing yet."""
        encoder, decoder = self.encoder.linear, self.decoder.linear
        assert encoder is not None and decoder is not None
        blocks = of_all_processes(cut_blocks(frames, self.temporal_stride, self.spatial_stride)).flatten(0, 2)
        _check_positions(len(blocks), frames)
        for head in (self.encoder.head, self.decoder.last_layer):
            for parameter in head.parameters():
                parameter.zero_()
        # On the CPU, where the same numbers give the same components; an encoder of key frames sees the end of a block.
        blocks = blocks.cpu().double()
        seen = blocks[:, -encoder.stem.project.in_features :]
        encoder.start(seen, min(self.quantizer.dim, seen.shape[1]))
        latents = self.encoder(frames)
        quantized = self.quantizer(latents).quantized if self.num_codebooks else self.quantizer.latents_of(latents)
        decoder.start(to_vectors(of_all_processes(quantized)).cpu().double(), blocks)

    def _encoded(self, step: Step, frames: Tensor, tiling: Tiling) -> Tensor:
        self.check_frames(frames)
        return _through(step, frames, self.config.frame_block, tiling)

    def _decoded(self, step: Step, clip: Tensor, num_frames: int | None, tiling: Tiling) -> Tensor:
        if num_frames is not None:
            self.config.check_num_frames(num_frames, clip.shape[2])
        return _through(step, clip, self.config.latent_block, tiling)[:, :, :num_frames]

    def _unrounded_block(self, frames: Tensor, past: Past) -> Tensor:
        return self._unrounded(self.encoder(frames, past))

    def _unrounded(self, encoded: Tensor) -> Tensor:
        with torch.autocast(encoded.device.type, enabled=False):
            return self.quantizer.unrounded(encoded.float())

    def _decode_latent_block(self, latents: Tensor, past: Past) -> Tensor:
        frames: Tensor = self.decoder(latents.to(self._dtype), past)
        return frames

    def _check_computed(self, values: Tensor, what: str) -> None:
        if not _is_finite(values):
            raise ModelError(
                f"the codec's {what} are NaN or infinite: its weights are damaged, or too large for {values.dtype};"
                " use float32 or another checkpoint"
            )

    @property
    def last_layer(self) -> Tensor:
        """The weights that make pixels, at which the gradients of losses are compared."""
        return self.decoder.last_layer.weight

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.head.weight.dtype

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """One of the K codebooks as the decoder sees it, float32 ``[codebook_size, D]``."""
        return self.quantizer.codebook_vectors(codebook)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, both or neither.

        An earlier codec in ``folder`` is replaced; anything else there raises :class:`CheckpointError`.
        """
        folder = Path(folder)
        check_replaceable(folder)
        with atomic_folder(folder) as beside:
            tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}
            save_file(tensors, beside / WEIGHTS_FILE)
            text = json.dumps({"model_type": self.model_type, **to_mapping(self.config)}, indent=2) + "\n"
            (beside / CONFIG_FILE).write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        name: str,
        *,
        refiner: Refiner | None = None,
        run: Run | None = None,
        license: str | None = None,
        **hub: Unpack[PushOptions],
    ) -> str:
        """Put the codec on the Hugging Face Hub as ``org/name``, and its refiner; the address of the commit.

        Its card says what ``run`` measured (:func:`tokvid.hub_card.read_run`), without one that nothing was evaluated.
        See :func:`tokvid.hub.push_folder`.
        """
        from tokvid_tokenizers.card import codec_card

        def write(folder: Path) -> None:
            self.save_pretrained(folder)
            if refiner is not None:
                refiner.save(folder)

        card = codec_card(name, self, run=run, license=license)
        return push_folder(write, name, card=card, **hub)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: torch.dtype | None = None, **hub: Unpack[HubOptions]
    ) -> VideoCodec:
        """Load a codec that :meth:`save_pretrained` wrote; keys and shapes must match exactly.

        ``name`` is a folder, or ``org/name`` on the Hugging Face Hub (see :class:`~tokvid.hub.HubOptions`). ``dtype``
        converts the weights; codes are those of float32 only there.
        """
        folder = local_folder(name, **hub)
        codec = cls(read_config(folder))
        load_exactly(codec, folder)
        return codec.eval() if dtype is None else codec.eval().to(dtype)


def _through(step: Step, clip: Tensor, block: int | None, tiling: Tiling) -> Tensor:
    """``clip`` in blocks through ``step``: all of a tile before the next one, so that one past at a time is there."""

    def whole(part: Tensor, past: Past) -> Tensor:
        *pieces, last = blocks_of(part, block)
        made = [step(piece, past) for piece in pieces]
        past.ends = True
        return torch.cat([*made, step(last, past)], dim=2)

    return tiling.run(whole, clip, (Past() for _ in tiling.tiles(clip)))


def _is_finite(values: Tensor) -> bool:
    # Without a copy, which isfinite would make: frames are the most that a stream holds.
    values = values.detach()
    return math.isfinite(values.amin()) and math.isfinite(values.amax())


def _check_positions(count: int, frames: Tensor) -> None:
    if count < 2:
        raise ShapeError(f"frames {list(frames.shape)} make one latent; calibrate needs two positions or more")
