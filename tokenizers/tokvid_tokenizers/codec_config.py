"""The configuration of a codec; the same dataclass becomes ``config.json`` of a saved one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokvid.config import ADDED_LATER
from tokvid.config_checks import at_least
from tokvid.errors import ConfigError, ModelError
from tokvid.grid import Grid, latent_frames
from tokvid_tokenizers.quantizers import FSQConfig, QuantizerConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A causal convolutional codec with a quantizer.

    ``channels`` and the block counts have one entry a resolution, finest first: the stem cuts ``patch`` by ``patch``
    pixels, and each further entry halves height and width. So ``spatial_stride = patch * 2**(len(channels)-1)``.

    With ``local_encoder`` a code is a function of its own block of pixels alone, while the decoder still looks around
    and back: a little worse to look at, but what stands still keeps its codes, and a language model learns them sooner.

    With ``key_frames`` the encoder sees of every ``temporal_stride`` frames only the last, and the decoder draws those
    between from the latent frames around them: codes then say nothing of how things move within a latent frame, which
    a language model cannot foresee. It suits motion that is smooth at the stride.

    Clips are encoded and decoded ``stream_block`` latent frames at a time (the first alone), whole or as a stream: more
    are faster, fewer come out sooner and need less memory. What is computed is the same up to the rounding of sums.
    """

    format_version: int = FORMAT_VERSION
    temporal_stride: int = 4
    patch: int = 4
    channels: tuple[int, ...] = (128, 256)
    encoder_blocks: tuple[int, ...] = (2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2)
    local_encoder: bool = field(default=False, metadata=ADDED_LATER)
    key_frames: bool = field(default=False, metadata=ADDED_LATER)
    stream_block: int = field(default=4, metadata=ADDED_LATER)
    quantizer: QuantizerConfig = field(default_factory=FSQConfig)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(_other_format(self.format_version))
        if self.temporal_stride < 1 or self.patch < 1:
            raise ConfigError(f"strides must be positive, got {self.temporal_stride} and {self.patch}")
        at_least(self, 1, "stream_block")
        if not self.channels or min(self.channels) < 8:
            raise ConfigError(f"channels must be 8 or more at every resolution, got {list(self.channels)}")
        if not len(self.channels) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ConfigError(
                "channels, encoder_blocks and decoder_blocks need one entry a resolution, got"
                f" {len(self.channels)}, {len(self.encoder_blocks)} and {len(self.decoder_blocks)}"
            )
        if min(self.encoder_blocks + self.decoder_blocks) < 0:
            raise ConfigError("block counts must not be negative")

    @property
    def spatial_stride(self) -> int:
        """Pixels of height and of width that make one cell."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    def grid_for(self, num_frames: int, height: int, width: int) -> Grid:
        """The latent grid of ``num_frames`` frames of ``height`` by ``width`` pixels; raises off the stride."""
        stride = self.spatial_stride
        if height < 1 or width < 1 or height % stride or width % stride:
            raise ModelError(f"height and width must be positive multiples of {stride}, got {height}x{width}")
        return Grid(t=latent_frames(num_frames, self.temporal_stride), h=height // stride, w=width // stride)


def check_format(data: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a saved configuration of another format, before its new keys look like typos."""
    found = data.get("format_version", FORMAT_VERSION)
    if found != FORMAT_VERSION:
        raise ConfigError(_other_format(found))


def _other_format(found: object) -> str:
    return f"this tokvid reads codec format {FORMAT_VERSION}, got {found}; update tokvid"
