"""What a codec costs before it is built: parameters, and multiply-accumulate operations at a size.

The networks are built without memory (on torch's meta device) and counted by torch.utils.flop_counter, so that the
figure is that of the code and no formula beside it. Element-wise work (norms, activations, rounding) does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokvid.grid import Grid
from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.decoder import Decoder
from tokvid_tokenizers.encoder import Encoder
from tokvid_tokenizers.quantizers import build_quantizer


@dataclass(frozen=True, kw_only=True)
class CodecCost:
    """Parameters of the parts, and multiply-accumulates to encode and to decode one clip on ``grid``."""

    grid: Grid
    num_codes: int
    """Codes of the clip: cells times codebooks."""
    encoder_parameters: int
    decoder_parameters: int
    quantizer_parameters: int
    encode_macs: int
    decode_macs: int

    @property
    def parameters(self) -> int:
        """Parameters of the whole codec."""
        return self.encoder_parameters + self.decoder_parameters + self.quantizer_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates to encode and decode once."""
        return self.encode_macs + self.decode_macs


def codec_cost(config: CodecConfig, num_frames: int, height: int, width: int) -> CodecCost:
    """The cost of a codec for one clip of ``num_frames`` frames of ``height`` by ``width`` pixels.

    Raises :class:`ModelError` for a size off the stride.
    """
    grid = config.grid_for(num_frames, height, width)
    quantizer = build_quantizer(config.quantizer)
    with torch.device("meta"):
        encoder, decoder = Encoder(config, quantizer.encoded_dim), Decoder(config, quantizer.dim)
        frames = torch.empty(1, 3, num_frames, height, width)
        latents = torch.empty(1, quantizer.dim, grid.t, grid.h, grid.w)
    return CodecCost(
        grid=grid,
        num_codes=grid.cells * quantizer.num_codebooks,
        encoder_parameters=_parameters(encoder),
        decoder_parameters=_parameters(decoder),
        quantizer_parameters=_parameters(quantizer),
        encode_macs=_macs(encoder, frames),
        decode_macs=_macs(decoder, latents),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(network: Callable[[Tensor], Tensor], batch: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(batch)
    return counter.get_total_flops() // 2
