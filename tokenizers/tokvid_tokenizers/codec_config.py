"""The configuration of a codec; the same dataclass becomes ``config.json`` of a saved one."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokvid.errors import ConfigError
from tokvid_tokenizers.quantizers import FSQConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A causal convolutional codec with a quantizer.

    ``channels`` and the block counts have one entry a resolution, finest first: the stem cuts ``patch`` by ``patch``
    pixels, and each further entry halves height and width. So ``spatial_stride = patch * 2**(len(channels)-1)``.
    """

    format_version: int = FORMAT_VERSION
    temporal_stride: int = 4
    patch: int = 4
    channels: tuple[int, ...] = (128, 256)
    encoder_blocks: tuple[int, ...] = (2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2)
    quantizer: FSQConfig = field(default_factory=FSQConfig)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"this tokvid reads codec format {FORMAT_VERSION}, got {self.format_version}; update tokvid"
            )
        if self.temporal_stride < 1 or self.patch < 1:
            raise ConfigError(f"strides must be positive, got {self.temporal_stride} and {self.patch}")
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
