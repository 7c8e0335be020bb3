"""What a run learns from its clips: shares of documents by how their codes are drawn and which cells are given.

A sample is a number; which clip it shows, which share it belongs to, which cells are known and masked, and whether its
caption is dropped, are functions of (seed, sample) alone. A resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.config_checks import at_least, finite, positive
from tokvid.errors import ConfigError
from tokvid.noise import uniform
from tokvid_lm.mask_schedule import MaskSchedule
from tokvid_lm.tasks import VideoTask
from tokvid_lm.vocabulary import MODES, Mode

Objective = Literal["next_token", "maskgit", "frame", "caption", "text", "chat"]


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """``share`` of the documents (of the sum of all shares).

    ``objective``: the codes of a video by next-token, masked at once, or masked frame by frame; ``caption``: the text
    of a video that is read; ``text``: the caption alone, or passages of ``passage`` ids of the UTF-8 text ``file``,
    which keep a pretrained model's text; ``chat``: all that the assistant says in a dialogue, whose videos are drawn in
    ``video_mode`` (in a masked mode the dialogue ends with one of them). ``task``: which cells are given. ``weight`` is
    what a code of it counts. ``schedule`` is from where masked shares are drawn.
    """

    objective: Objective = "next_token"
    task: VideoTask = "text_to_video"
    share: float = 1.0
    weight: float = 1.0
    schedule: MaskSchedule = field(default_factory=MaskSchedule)
    file: str = ""
    passage: int = 128
    video_mode: Mode = "next_token"

    def __post_init__(self) -> None:
        positive(self, "share")
        at_least(self, 0, "weight")
        at_least(self, 2, "passage")
        finite(self, "share", "weight")
        if not self.draws_video and self.task != "text_to_video":
            raise ConfigError(f"the objective {self.objective} draws no video of a task: leave {self.task} out")
        if self.objective != "chat" and self.video_mode != "next_token":
            raise ConfigError(f"video_mode is for the objective chat; {self.objective} says itself how codes are drawn")
        if self.file and self.objective != "text":
            raise ConfigError(f"the objective {self.objective} reads clips, not the file {self.file}: leave it out")

    @property
    def mode(self) -> Mode:
        """The mode of the video; a video that is read is written in the next-token mode."""
        return self.objective if self.objective in MODES else self.video_mode

    @property
    def draws_video(self) -> bool:
        """Whether the codes of its clip are asked for, and that of nothing else."""
        return self.objective in MODES


# Parts the noise of a document from the samplers' of the same seed, and its uses from one another.
_STREAM = 0x50D0
_DROP, _ENTRY, _TASK, _MASK, _PASSAGE, _CUT = range(6)
_TOGETHER = 256  # samples whose few draws are made at once: alone each takes as long


class Mixture:
    """The draws of every sample."""

    def __init__(self, entries: Sequence[MixtureConfig], *, seed: int) -> None:
        self.entries = tuple(entries)
        self.seed = seed
        shares = np.array([entry.share for entry in entries])
        self._edges = np.cumsum(shares) / shares.sum()

    def entry(self, sample: int) -> MixtureConfig:
        """The share that ``sample`` belongs to."""
        number = int(np.searchsorted(self._edges, self._few(sample, _ENTRY, 1)[0], side="right"))
        return self.entries[min(number, len(self.entries) - 1)]

    def drops_caption(self, sample: int, share: float) -> bool:
        """Whether ``sample`` is one of the ``share`` that lose their caption."""
        return bool(self._few(sample, _DROP, 1)[0] < share)

    def task_noise(self, sample: int) -> npt.NDArray[np.float64]:
        """Four numbers in [0, 1) for :func:`~tokvid_lm.tasks.known_cells`."""
        return self._few(sample, _TASK, 4)

    def passage_noise(self, sample: int) -> float:
        """A number in [0, 1): where in its text a passage starts."""
        return float(self._few(sample, _PASSAGE, 1)[0])

    def cut_noise(self, sample: int) -> float:
        """A number in [0, 1): after which of its drawn videos a dialogue ends."""
        return float(self._few(sample, _CUT, 1)[0])

    def mask_noise(self, sample: int, count: int) -> npt.NDArray[np.float64]:
        """``count`` numbers in [0, 1)."""
        return _noise(self.seed, _MASK, torch.tensor(sample), count)

    def _few(self, sample: int, use: int, count: int) -> npt.NDArray[np.float64]:
        group, place = divmod(sample, _TOGETHER)
        numbers: npt.NDArray[np.float64] = _few_of(self.seed, use, group, count)[place]
        return numbers


def _noise(seed: int, use: int, samples: Tensor, count: int) -> npt.NDArray[np.float64]:
    """``count`` numbers of each of ``samples`` (int64, any shape)."""
    counters = (torch.tensor(_STREAM + use), samples[..., None], torch.arange(count))
    return uniform(seed, *counters).double().numpy()


@lru_cache(maxsize=64)
def _few_of(seed: int, use: int, group: int, count: int) -> npt.NDArray[np.float64]:
    """``[256,count]``: the numbers of all samples of a group."""
    return _noise(seed, use, torch.arange(group * _TOGETHER, (group + 1) * _TOGETHER), count)


def hide(
    unknown: npt.NDArray[np.bool_],
    frame: npt.NDArray[np.int64] | None,
    schedule: MaskSchedule,
    noise: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Which of the ``unknown`` places ``[S]`` are masked, at least one of those that are drawn together.

    All of a video are drawn together, or, with the latent ``frame`` of each place, those of a frame; each group has a
    share of its own, drawn from ``schedule``. ``noise`` ``[S + t]``: one number a place, one a latent frame.
    """
    masked = np.zeros(len(unknown), bool)
    groups = [unknown] if frame is None else [unknown & (frame == number) for number in range(int(frame[-1]) + 1)]
    for number, group in enumerate(groups):
        places = np.flatnonzero(group)
        if len(places):
            share = float(schedule.draw(noise[len(unknown) + number])[0])
            count = min(len(places), max(1, int(np.ceil(share * len(places)))))
            masked[places[np.argsort(noise[places], kind="stable")[:count]]] = True
    return masked
