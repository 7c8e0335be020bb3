"""What a video language model was trained for and is best used with, as it is saved beside it."""

from __future__ import annotations

from dataclasses import dataclass

from tokvid.config_checks import is_line
from tokvid.errors import ModelError
from tokvid_lm.samplers.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """What a model was trained for and is best used with.

    ``sampling``: the modes it was trained in and how clips are drawn in each, the default first (their seeds do not
    count). ``num_frames``, ``height`` and ``width`` in pixels and ``fps`` of its clips, where they were all alike, and
    ``latent_frames`` of the longest. ``knows_null_prompt``: whether captions were dropped, which guidance needs.
    ``about``: what it was trained on and can be asked, in a line for people who talk with it; None says nothing.
    """

    sampling: tuple[Sampling, ...] = (Sampling(),)
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    latent_frames: int | None = None
    knows_null_prompt: bool = True
    captions: bool = False
    about: str | None = None

    def __post_init__(self) -> None:
        is_line(self, "about")
        modes = [sampling.mode for sampling in self.sampling]
        if len(set(modes)) != len(modes):
            raise ModelError(f"a model draws in each mode it knows once, got {modes}")
        if not self.captions and any(sampling.candidates > 1 for sampling in self.sampling):
            raise ModelError("candidates are judged by captions, which this model was not trained to write: use 1")

    def check_clips(self, fps: float | None, size: tuple[int, ...]) -> None:
        """Raise :class:`ModelError` for clips of another rate or ``size`` ``(T,H,W)`` than those it was trained on."""
        if self.fps is not None and fps != self.fps:
            found = "no known rate" if fps is None else f"{fps:g}"
            raise ModelError(f"the model was trained at {self.fps:g} frames a second, these clips have {found}")
        wanted = (self.num_frames, self.height, self.width)
        if None not in wanted and size != wanted:
            raise ModelError(
                f"the model was trained on clips of {self.num_frames} frames of {self.height}x{self.width}, these have"
                f" {size[0]} of {size[1]}x{size[2]}"
            )
