"""The configurations of codecs, one kind of network each; the same dataclass becomes ``config.json`` of a saved one.

They form a closed union. A mapping without a ``kind`` was written before there were kinds and means ``shift``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from tokvid.config import ADDED_LATER, from_union
from tokvid.config_checks import at_least
from tokvid.errors import ConfigError, ModelError, ShapeError
from tokvid.grid import Grid, check_num_frames, latent_frames
from tokvid_tokenizers.quantizers import FSQConfig, QuantizerConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BaseCodecConfig(ABC):
    """What every kind of codec has: its strides, its quantizer, and the blocks in which clips run through it.

    The stem cuts ``patch`` by ``patch`` pixels. Clips are encoded and decoded ``stream_block`` latent frames at a time
    (the first alone), whole or as a stream: more are faster, fewer come out sooner and need less memory. What is
    computed is the same up to the rounding of sums.

    With ``linear_path`` there is a linear map beside each network, from every block of pixels to its latent and back,
    which training starts on principal components. The network then begins with a codec and mends it: a training gets
    further in the same time.
    """

    kind: str
    format_version: int = FORMAT_VERSION
    temporal_stride: int = 4
    patch: int
    stream_block: int = field(default=4, metadata=ADDED_LATER)
    linear_path: bool = field(default=False, metadata=ADDED_LATER)
    quantizer: QuantizerConfig = field(default_factory=FSQConfig)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(_other_format(self.format_version))
        if self.temporal_stride < 1 or self.patch < 1:
            raise ConfigError(f"strides must be positive, got {self.temporal_stride} and {self.patch}")
        at_least(self, 1, "stream_block")

    @property
    @abstractmethod
    def spatial_stride(self) -> int:
        """Pixels of height and of width that make one cell."""

    @property
    def is_causal(self) -> bool:
        """Whether latent frames see no later frame, and the first frame stands alone."""
        return True

    @property
    def looks_ahead(self) -> bool:
        """Whether the frames of a latent frame depend on the next one."""
        return False

    @property
    def latent_block(self) -> int | None:
        """How many latent frames run through the networks at a time, after the first; None: all of a clip."""
        return self.stream_block if self.is_causal else None

    @property
    def frame_block(self) -> int | None:
        """The same in frames."""
        return None if self.latent_block is None else self.latent_block * self.temporal_stride

    def latent_frames(self, num_frames: int) -> int:
        """How many latent frames ``num_frames`` become."""
        return latent_frames(num_frames, self.temporal_stride)

    def check_num_frames(self, num_frames: int, t: int) -> None:
        """Raise :class:`ShapeError` unless ``t`` latent frames can decode to exactly ``num_frames`` frames."""
        check_num_frames(num_frames, t, self.temporal_stride)

    def grid_for(self, num_frames: int, height: int, width: int) -> Grid:
        """The latent grid of ``num_frames`` frames of ``height`` by ``width`` pixels; raises off the stride."""
        stride = self.spatial_stride
        if height < 1 or width < 1 or height % stride or width % stride:
            raise ModelError(f"height and width must be positive multiples of {stride}, got {height}x{width}")
        return Grid(t=self.latent_frames(num_frames), h=height // stride, w=width // stride)


@dataclass(frozen=True, kw_only=True)
class _ConvolutionalConfig(BaseCodecConfig):
    """``channels`` and the block counts have one entry a resolution, finest first.

    The stem makes the finest, and each further entry halves height and width. So ``spatial_stride`` is
    ``patch * 2**(len(channels)-1)``.
    """

    channels: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels or min(self.channels) < 8:
            raise ConfigError(f"channels must be 8 or more at every resolution, got {list(self.channels)}")
        self._one_entry_a_resolution("channels", "encoder_blocks", "decoder_blocks")
        if min(self.encoder_blocks + self.decoder_blocks) < 0:
            raise ConfigError("block counts must not be negative")

    def _one_entry_a_resolution(self, *names: str) -> None:
        lengths = [len(getattr(self, name)) for name in names]
        if len(set(lengths)) > 1:
            raise ConfigError(f"{_listed(names)} need one entry a resolution, got {_listed(map(str, lengths))}")

    @property
    def spatial_stride(self) -> int:
        """Pixels of height and of width that make one cell."""
        return int(self.patch * 2 ** (len(self.channels) - 1))


@dataclass(frozen=True, kw_only=True)
class CodecConfig(_ConvolutionalConfig):
    """A causal codec of 2-D convolutions at the latent frame rate, which mixes time by shifting channels.

    The stem cuts blocks of ``temporal_stride`` frames by ``patch`` by ``patch`` pixels (the first frame alone).

    With ``local_encoder`` a code is a function of its own block of pixels alone, while the decoder still looks around
    and back: a little worse to look at, but what stands still keeps its codes, and a language model learns them sooner.

    With ``key_frames`` the encoder sees of every ``temporal_stride`` frames only the last, and the decoder draws those
    between from the latent frames around them: codes then say nothing of how things move within a latent frame, which
    a language model cannot foresee. It suits motion that is smooth at the stride.
    """

    kind: Literal["shift"] = field(default="shift", metadata=ADDED_LATER)
    patch: int = 4
    channels: tuple[int, ...] = (128, 256)
    encoder_blocks: tuple[int, ...] = (2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2)
    local_encoder: bool = field(default=False, metadata=ADDED_LATER)
    key_frames: bool = field(default=False, metadata=ADDED_LATER)


@dataclass(frozen=True, kw_only=True)
class FactorisedCodecConfig(_ConvolutionalConfig):
    """A causal codec of 2-D convolutions over space and 1-D convolutions over time, by turns.

    It begins at the frame rate. ``halves_time`` has one entry a resolution too: where it is true, the encoder halves
    the number of frames on the way into that resolution and the decoder doubles it on the way out. So
    ``temporal_stride`` is 2 to the number of true entries. A ``patch`` of 1 leaves the pixels as they are.
    """

    kind: Literal["factorised"] = "factorised"
    patch: int = 2
    channels: tuple[int, ...] = (64, 128, 256)
    encoder_blocks: tuple[int, ...] = (2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 2)
    halves_time: tuple[bool, ...] = (False, True, True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_entry_a_resolution("channels", "halves_time")
        if 2 ** sum(self.halves_time) != self.temporal_stride:
            raise ConfigError(
                f"halves_time is true {sum(self.halves_time)} times, which makes a temporal stride of"
                f" {2 ** sum(self.halves_time)}, but temporal_stride is {self.temporal_stride}; change one of them"
            )


@dataclass(frozen=True, kw_only=True)
class TransformerCodecConfig(BaseCodecConfig):
    """A causal transformer on cells of ``temporal_stride`` frames (the first alone) of ``patch`` by ``patch`` pixels.

    Every block of the network looks at the cells of its own latent frame, then back in time at its own place: at
    ``temporal_window`` latent frames, the present one included. Over space it sees squares of ``spatial_window`` by
    ``spatial_window`` cells, counted from the top left corner and moved by half a square in every second block, so
    that a cell costs the same in a picture of any size; with None it sees the whole picture, and the cost grows with
    the square of its area. The feed-forward is ``expansion`` times as wide as the ``channels``.
    """

    kind: Literal["transformer"] = "transformer"
    patch: int = 8
    channels: int = 384
    heads: int = 6
    encoder_blocks: int = 4
    decoder_blocks: int = 6
    temporal_window: int = 4
    spatial_window: int | None = 8
    expansion: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "heads", "temporal_window", "expansion")
        at_least(self, 0, "encoder_blocks", "decoder_blocks")
        if self.channels < 8 or self.channels % (4 * self.heads):
            raise ConfigError(
                f"channels must be a multiple of 4 for each of {self.heads} heads (rows and columns turn pairs of"
                f" them), got {self.channels}"
            )
        if self.spatial_window is not None and self.spatial_window < 2:
            raise ConfigError(
                f"spatial_window must be at least 2 cells, or null for the whole picture, got {self.spatial_window}"
            )

    @property
    def spatial_stride(self) -> int:
        """Pixels of height and of width that make one cell."""
        return self.patch


@dataclass(frozen=True, kw_only=True)
class VidTokConfig(BaseCodecConfig):
    """A codec of VidTok (Tang et al. 2024, arXiv 2412.13061), under its names.

    ``channels`` (its ``ch`` times ``ch_mult``) has one entry a resolution, finest first; each has ``blocks`` residual
    blocks over space and as many over time, in the decoder one more. ``spatial_ds`` and ``tempo_ds`` are the
    resolutions after which the encoder halves the pictures and the number of frames, ``spatial_us`` and ``tempo_us``
    those after which the decoder doubles them. The decoder of ``version`` 1.1 looks one latent frame ahead. A codec
    that is not ``causal`` (1.0 alone) takes whole clips, of which a latent frame is ``temporal_stride`` frames, the
    first one too.
    """

    kind: Literal["vidtok"] = "vidtok"
    patch: int = 1
    version: Literal["1.0", "1.1"] = "1.1"
    causal: bool = True
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    spatial_ds: tuple[int, ...] = (0, 1, 2)
    tempo_ds: tuple[int, ...] = (1, 2)
    spatial_us: tuple[int, ...] = (1, 2, 3)
    tempo_us: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "blocks")
        if self.linear_path or self.patch != 1:
            raise ConfigError("a codec of VidTok has no linear_path, and a patch of 1")
        if self.version != "1.0" and not self.causal:
            raise ConfigError("a codec of VidTok that is not causal is of version 1.0")
        last = len(self.channels) - 1
        for names, levels in (
            (("spatial_ds", "tempo_ds"), range(last)),
            (("spatial_us", "tempo_us"), range(1, last + 1)),
        ):
            space, time = (getattr(self, name) for name in names)
            if not set(time) <= set(space) <= set(levels) or len(set(space) | set(time)) != len(space):
                raise ConfigError(
                    f"{names[0]} must be some of the resolutions {list(levels)} and {names[1]} some of those, got"
                    f" {list(space)} and {list(time)}"
                )
        if len(self.spatial_ds) != len(self.spatial_us) or len(self.tempo_ds) != len(self.tempo_us):
            raise ConfigError("the decoder of VidTok must double what the encoder halves, as often")
        if 2 ** len(self.tempo_ds) != self.temporal_stride:
            raise ConfigError(
                f"tempo_ds {list(self.tempo_ds)} makes a temporal stride of {2 ** len(self.tempo_ds)}, but"
                f" temporal_stride is {self.temporal_stride}; change one of them"
            )

    @property
    def spatial_stride(self) -> int:
        """Pixels of height and of width that make one cell."""
        return int(2 ** len(self.spatial_ds))

    @property
    def is_causal(self) -> bool:
        """Whether latent frames see no later frame, and the first frame stands alone."""
        return self.causal

    @property
    def looks_ahead(self) -> bool:
        """Whether the frames of a latent frame depend on the next one."""
        return self.version == "1.1"

    def latent_frames(self, num_frames: int) -> int:
        """How many latent frames ``num_frames`` become; the last group is filled."""
        return super().latent_frames(num_frames) if self.causal else -(-num_frames // self.temporal_stride)

    def check_num_frames(self, num_frames: int, t: int) -> None:
        """Raise :class:`ShapeError` unless ``t`` latent frames can decode to exactly ``num_frames`` frames."""
        if self.causal:
            super().check_num_frames(num_frames, t)
        elif self.latent_frames(num_frames) != t:
            stride = self.temporal_stride
            raise ShapeError(
                f"{t} latent frames of {stride} frames hold {(t - 1) * stride + 1} to {t * stride} frames, got"
                f" num_frames={num_frames}"
            )


AnyCodecConfig = CodecConfig | FactorisedCodecConfig | TransformerCodecConfig | VidTokConfig


def codec_config(data: Mapping[str, Any]) -> AnyCodecConfig:
    """The configuration that ``data`` describes, of the kind that it names.

    Raises :class:`ConfigError`; for a saved configuration of another format before its new keys look like typos.
    """
    found = data.get("format_version", FORMAT_VERSION)
    if found != FORMAT_VERSION:
        raise ConfigError(_other_format(found))
    return cast(AnyCodecConfig, from_union(AnyCodecConfig, data))


def _other_format(found: object) -> str:
    return f"this tokvid reads codec format {FORMAT_VERSION}, got {found}; update tokvid"


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
