"""What a codec costs before it is built: parameters, and multiply-accumulate operations at a size.

The networks are built without memory (on torch's meta device) and counted by torch.utils.flop_counter, so that the
figure is that of the code and no formula beside it. Element-wise work (norms, activations, rounding) does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokvid.grid import Grid
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.layers.past import Past
from tokvid_tokenizers.networks import build_decoder, build_encoder
from tokvid_tokenizers.quantizers import build_quantizer
from tokvid_tokenizers.streaming import blocks_of


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


def codec_cost(config: AnyCodecConfig, num_frames: int, height: int, width: int) -> CodecCost:
    """The cost of a codec for one clip of ``num_frames`` frames of ``height`` by ``width`` pixels.

    Raises :class:`ModelError` for a size off the stride.
    """
    grid = config.grid_for(num_frames, height, width)
    quantizer = build_quantizer(config.quantizer)
    with torch.device("meta"):
        encoder, decoder = build_encoder(config, quantizer.encoded_dim), build_decoder(config, quantizer.dim)
        frames = torch.empty(1, 3, num_frames, height, width)
        latents = torch.empty(1, quantizer.dim, grid.t, grid.h, grid.w)
    return CodecCost(
        grid=grid,
        num_codes=grid.cells * quantizer.num_codebooks,
        encoder_parameters=_parameters(encoder),
        decoder_parameters=_parameters(decoder),
        quantizer_parameters=_parameters(quantizer),
        encode_macs=_macs(encoder, blocks_of(frames, config.frame_block)),
        decode_macs=_macs(decoder, blocks_of(latents, config.latent_block)),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(network: nn.Module, blocks: Iterator[Tensor]) -> int:
    """What ``network`` multiplies when the ``blocks`` of a clip go through it, one after the other."""
    past, total, last, before = Past(), 0, 0, None
    for block in blocks:
        # A block costs what its shape and the shapes of what the layers keep make it cost. Where neither changes any
        # more, as in the middle of a long clip, it need not be counted again.
        shapes = [block.shape, *(tensor.shape for tensor in past.tensors(network).values())]
        if shapes != before:
            # Of the ways to compute attention, the one that the counter knows on every device.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                network(block, past)
            last, before = counter.get_total_flops() // 2, shapes
        total += last
    return total
