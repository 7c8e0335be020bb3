"""The latent grid of a clip: lower case is latent, capitals are pixels."""

from __future__ import annotations

from dataclasses import dataclass

from tokvid.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """``t`` latent frames of ``h`` by ``w`` cells."""

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise ShapeError(f"a grid needs t, h and w of at least 1, got {self.t}x{self.h}x{self.w}")

    @property
    def cells(self) -> int:
        """Number of cells, ``t*h*w``."""
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


def latent_frames(num_frames: int, temporal_stride: int) -> int:
    """``t = 1 + ceil((T-1)/temporal_stride)``: the first frame stands alone, the last group is filled."""
    if num_frames < 1:
        raise ShapeError(f"a clip needs at least one frame, got {num_frames}")
    return 1 + -(-(num_frames - 1) // temporal_stride)


def check_num_frames(num_frames: int, t: int, temporal_stride: int) -> None:
    """Raise :class:`ShapeError` unless ``t`` latent frames can decode to exactly ``num_frames`` frames."""
    if num_frames < 1 or latent_frames(num_frames, temporal_stride) != t:
        first = max(1, 2 + (t - 2) * temporal_stride)
        last = 1 + (t - 1) * temporal_stride
        raise ShapeError(
            f"{t} latent frames at temporal stride {temporal_stride} hold {first} to {last} frames,"
            f" got num_frames={num_frames}"
        )
