"""Clips as codes, wherever they are: in memory, encoded just now, or in shards on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokvid.data.clip import Split
from tokvid.grid import Grid


class CodeSource(ABC):
    """N clips as codes of one codec, with captions; numbered from 0."""

    codebook_size: int
    captions: Sequence[str]
    """One a clip, perhaps empty."""
    names: Sequence[str]
    """Of the clips, or none where they are not known."""

    def __len__(self) -> int:
        return len(self.captions)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int] | None:
        """Frames, height and width in pixels, if all clips have one size."""

    @property
    @abstractmethod
    def fps(self) -> float | None:
        """Frames a second, where they are known and those of all clips."""

    @property
    @abstractmethod
    def latent_frames(self) -> int:
        """Of the longest clip."""

    @abstractmethod
    def grid_of(self, number: int) -> Grid:
        """The grid of a clip, without reading its codes."""

    @abstractmethod
    def codes_of(self, number: int) -> Tensor:
        """The codes of a clip, int64 ``[K,t,h,w]``."""

    @abstractmethod
    def fps_of(self, number: int) -> float | None:
        """Frames a second of a clip, where they are known."""

    @abstractmethod
    def num_frames_of(self, number: int) -> int:
        """T of a clip."""

    @abstractmethod
    def has_actions(self, number: int) -> bool:
        """Whether a clip has actions."""

    @abstractmethod
    def actions_of(self, number: int) -> Tensor:
        """The actions of a clip that has some, int64 ``[T-1]``."""

    @abstractmethod
    def digest(self) -> str:
        """64 hexadecimal digits that differ where the clips do."""


class ShardClips(CodeSource):
    """One split of a folder of code shards; no more of it is in memory than what is asked for, but for the captions."""

    def __init__(self, folder: str | Path, split: Split, *, codec_id: str) -> None:
        """Raises :class:`~tokvid.errors.DataError` for codes of another codec than ``codec_id``, and damaged files."""
        from tokvid.data.code_shards import CodeShards  # with datasets and pandas, a second that drawing does not need

        self._shards = CodeShards(folder, split)
        self._shards.check_codec(codec_id)
        self.codebook_size = self._shards.codec.codebook_size
        self.captions = self._shards.captions()
        self.names = self._shards.names()
        self._grids = self._shards.grids()
        self._shapes = self._shards.shapes()

    @property
    def size(self) -> tuple[int, int, int] | None:
        sides = [np.unique(column) for column in (self._shapes.num_frames, self._shapes.height, self._shapes.width)]
        frames, height, width = (int(side[0]) for side in sides)
        return (frames, height, width) if all(len(side) == 1 for side in sides) else None

    @property
    def fps(self) -> float | None:
        rates = np.unique(self._shapes.fps)
        return float(rates[0]) if len(rates) == 1 else None

    @property
    def latent_frames(self) -> int:
        return int(self._grids[:, 0].max())

    def grid_of(self, number: int) -> Grid:
        t, h, w = self._grids[number].tolist()
        return Grid(t=t, h=h, w=w)

    def codes_of(self, number: int) -> Tensor:
        return torch.from_numpy(self._shards[number].codes.copy())

    def fps_of(self, number: int) -> float | None:
        return float(self._shapes.fps[number])

    def num_frames_of(self, number: int) -> int:
        return int(self._shapes.num_frames[number])

    def has_actions(self, number: int) -> bool:
        return bool(self._shapes.actions[number])

    def actions_of(self, number: int) -> Tensor:
        return torch.tensor(self._shards[number].actions)

    def digest(self) -> str:
        return self._shards.digest()
