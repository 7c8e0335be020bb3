"""Refinement of a codec's frames: a flow from what codes decode to towards a clip that they may have come from.

A decoder that learned a squared error gives about the mean of all videos that share the codes, which is smoother than
any of them. Drawing one of them from noise doubles that error, however well it is learned. Frames distributed as real
ones cost less, and least along the shortest way from the decodings to the clips: the rectified flow that begins at the
decoding, and a little noise, and is not told it beside (Posterior-Mean Rectified Flow, Ohayon et al. 2024, arXiv
2410.00418; the least error: Freirich et al. 2021, arXiv 2107.02555). A head says its velocities patch by patch, of the
frame and earlier ones on the same way, so a video of any length is refined frame after frame.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from tokvid.config import from_mapping, to_mapping
from tokvid.config_checks import at_least, finite
from tokvid.diffusion_head import HeadConfig
from tokvid.errors import CheckpointError, ConfigError, ModelError, ShapeError
from tokvid.flow import Refinement, Solver, follow, starting_noise
from tokvid.head_files import drawn_by, load_head, save_head
from tokvid.hub import CODEC_PREFIXES, HubOptions, local_folder
from tokvid_tokenizers.refiner_head import RefinerHead, RefinerHeadConfig

if TYPE_CHECKING:
    from tokvid_tokenizers.codec import VideoCodec

REFINER = "refiner"
"""The name of its files in the folder of a codec."""


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """``patch`` pixels are the side of what a velocity is said of at a time. It is said after ``width`` numbers, made
    of what is seen in its place, ``looks`` patches around it, and so many frames ``before``. The way begins with
    ``noise`` of that deviation on frames in [-1, 1], the same for every frame of a clip: noise that changes is flicker.
    """

    patch: int = 4
    width: int = 128
    looks: int = 3
    before: tuple[int, ...] = (1, 2, 4)
    noise: float = 0.02

    def __post_init__(self) -> None:
        at_least(self, 1, "patch", "width")
        at_least(self, 0, "looks", "noise")
        finite(self, "noise")
        if not self.before or min(self.before) < 1 or len(set(self.before)) < len(self.before):
            raise ConfigError(f"before counts back to earlier frames, each once and at least 1, got {self.before}")


@dataclass(frozen=True, kw_only=True)
class FrameRefinement(Refinement):
    """How frames are refined; ``temperature`` scales the noise at the start. What the head says of a frame counts
    ``strength`` times: a small network says the mean of what it cannot tell apart, so frames would end with less detail
    than clips have."""

    steps: int = 10
    solver: Solver = "euler"
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "strength")
        finite(self, "strength")


class Refiner:
    """A head for the frames of one codec; :meth:`refine` draws, :mod:`tokvid_tokenizers.refiner_training` trains."""

    def __init__(
        self, codec: VideoCodec, config: RefinerConfig, head: RefinerHead | None, refinement: FrameRefinement
    ) -> None:
        codec.check_discrete()
        stride = codec.spatial_stride
        if stride % config.patch:
            raise ConfigError(
                f"a refiner's patch divides the codec's spatial stride {stride}, got {config.patch}: take {stride}"
            )
        self.codec, self.config, self.refinement = codec, config, refinement
        self.channels = 3 * config.patch**2
        self._basis = _waves(config.patch)
        self.head = head
        if head is not None:
            self._check(head)

    def new_head(
        self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float], spread: Sequence[float]
    ) -> RefinerHead:
        """A head that was not trained, for patches of those statistics a channel, see :class:`RefinerHeadConfig`."""
        return RefinerHead(
            RefinerHeadConfig(
                condition_dim=self.config.width,
                mean=tuple(mean),
                deviation=tuple(deviation),
                spread=tuple(spread),
                looks=self.config.looks,
                earlier=len(self.config.before),
                **to_mapping(config),
            )
        )

    def refine(self, codes: Tensor, num_frames: int | None = None, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Frames float ``[B,3,T,H,W]`` in [-1, 1] of codes ``[B,K,t,h,w]``, as :meth:`VideoCodec.decode` has them, with
        what decoding lost.

        The noise is a function of (seed, sample, patch); the first clip is sample ``first_sample``.
        """
        with torch.no_grad():
            plain = self.codec.decode(codes, num_frames)
        under_way = Refining(self, torch.arange(first_sample, first_sample + len(codes)), seed=seed)
        return torch.stack([under_way.push(frame) for frame in plain.unbind(2)], dim=2)

    def cut(self, images: Tensor) -> Tensor:
        """Images ``[N,3,H,W]`` as patches ``[N,H/p,W/p,3*p*p]``, told in waves."""
        p = self.config.patch
        n, c, height, width = images.shape
        cut = images.reshape(n, c, height // p, p, width // p, p)
        patches: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(3) @ self._basis.to(images).T
        return patches

    def joined(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        p = self.config.patch
        n, rows, columns, _ = patches.shape
        cut = (patches @ self._basis.to(patches)).unflatten(3, (3, p, p)).permute(0, 3, 1, 4, 2, 5)
        image: Tensor = cut.reshape(n, 3, rows * p, columns * p)
        return image

    def save(self, folder: str | Path) -> None:
        """Write the refiner into the folder of its codec."""
        assert self.head is not None
        own = {"codec_id": self.codec.codec_id, "refiner": to_mapping(self.config)}
        save_head(Path(folder), REFINER, self.head, self.refinement, **own)

    @classmethod
    def load(cls, name: str | Path, codec: VideoCodec, **hub: Unpack[HubOptions]) -> Refiner:
        """The refiner beside ``codec``, in the folder or on the Hub's ``org/name`` that it was loaded from;
        :class:`ModelError` where there is none, :class:`CheckpointError` for one of another codec and for files that
        are damaged."""
        found, folder = None, Path(name)
        if not str(name).startswith(CODEC_PREFIXES):
            folder = local_folder(name, **hub)
            wanted = ("codec_id", "refiner")
            found = load_head(folder, REFINER, what="refiner", kind=RefinerHead, how=FrameRefinement, wanted=wanted)
        if found is None:
            raise ModelError(
                f"{name} is a codec without a refiner: train one by the recipe codec/sprites-refine, with"
                f" --codec={name} and --data of what it is for, or leave --refine out"
            )
        head, refinement, facts = found
        if facts["codec_id"] != codec.codec_id:
            raise CheckpointError(
                f"the refiner in {folder} is that of codec {facts['codec_id']}, this one is {codec.codec_id}: train it"
                " anew"
            )
        try:
            config = from_mapping(RefinerConfig, facts["refiner"], where="refiner")
        except ConfigError as error:
            raise CheckpointError(f"{folder / REFINER}.json: {error}") from error
        return cls(codec, config, head.to(next(codec.parameters()).device), refinement)

    def drawn_by(self) -> dict[str, Any]:
        """What draws, for the metadata of a video whose frames it refines."""
        assert self.head is not None
        return drawn_by(self.head, self.refinement)

    def _check(self, head: RefinerHead) -> None:
        config = head.config
        assert isinstance(config, RefinerHeadConfig)
        wanted, found = (self.channels, len(self.config.before)), (config.latent_dim, config.earlier)
        if wanted != found:
            raise ModelError(
                f"this head is for patches of {found[0]} numbers and {found[1]} earlier frames, this refiner has"
                f" {wanted[0]} and {wanted[1]}: train it anew"
            )


class Refining:
    """Clips whose frames are refined one after the other; ``samples`` int64 ``[B]`` are their numbers for the noise."""

    def __init__(self, refiner: Refiner, samples: Tensor, *, seed: int = 0) -> None:
        if refiner.head is None:
            raise ModelError("this refiner was not trained: it has no head")
        self._refiner, self._head, self._samples, self._seed = refiner, refiner.head, samples, seed
        self._noise: Tensor | None = None
        # Of each earlier frame, the last one first, where it was whenever a velocity was asked for.
        self._ways: deque[list[Tensor]] = deque(maxlen=max(refiner.config.before))

    @torch.no_grad()
    def push(self, plain: Tensor) -> Tensor:
        """The next frame, float ``[B,3,H,W]`` in [-1, 1], given its decoding. Raises :class:`ShapeError` for a frame
        off the codec's stride, and for one of another shape than the first."""
        settings, head = self._refiner.refinement, self._head
        stride = self._refiner.codec.spatial_stride
        if any(side % stride for side in plain.shape[2:]):
            raise ShapeError(f"frames have multiples of {stride} as sides, got {plain.shape[2]}x{plain.shape[3]}")
        patches = self._refiner.cut(plain.float())
        if self._noise is None:
            self._noise = self._first_noise(patches)
        if self._noise.shape != patches.shape:
            raise ShapeError(f"expected a frame as the first one, got {list(plain.shape)}")
        way: list[Tensor] = []

        def velocity(points: Tensor, times: Tensor) -> Tensor:
            now = points.unflatten(0, patches.shape[:3])
            way.append(now)
            otherwise = torch.stack([self._way(back, way)[len(way) - 1] - now for back in self._refiner.config.before])
            time = times[:: patches.shape[1] * patches.shape[2]]
            return head.velocity(now, otherwise.permute(1, 2, 3, 0, 4), time, strength=settings.strength).flatten(0, 2)

        start = head.standardise(patches + settings.temperature * self._noise).flatten(0, 2)
        end = follow(velocity, start, steps=settings.steps, solver=settings.solver).unflatten(0, patches.shape[:3])
        self._ways.appendleft(way)
        frame: Tensor = self._refiner.joined(head.unstandardise(end)).clamp(-1.0, 1.0)
        return frame

    def _way(self, back: int, own: list[Tensor]) -> list[Tensor]:
        """That of the frame so many before; the first one's where there is none."""
        if not self._ways:
            return own
        return self._ways[min(back, len(self._ways)) - 1]

    def _first_noise(self, patches: Tensor) -> Tensor:
        clips, rows, columns, channels = patches.shape
        places = torch.arange(rows * columns)
        noise = starting_noise(self._seed, self._samples.repeat_interleave(len(places)), places.repeat(clips), channels)
        return noise.to(patches.device).reshape(patches.shape) * self._refiner.config.noise


def _waves(side: int) -> Tensor:
    """An orthonormal basis ``[3*p*p,3*p*p]`` of patches: brightness and two differences of colours, each in cosines.

    Most of what decoding loses is bright and slow. Its channels have a deviation each, by which errors count; of pixels
    all would have the same one, and what the head has not learned would show as coloured grain.
    """
    place = torch.arange(side, dtype=torch.float64)
    cosines = torch.cos(math.pi / side * (place[None] + 0.5) * place[:, None]) * (2 / side) ** 0.5
    cosines[0] /= 2**0.5
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    return torch.kron(torch.kron(colours, cosines), cosines).float()
