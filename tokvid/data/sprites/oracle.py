"""The oracle: which sprites a clip shows, how they move, and over which background, from its frames alone.

It is a matched filter. The background's colour is estimated from the clip; every sprite at every size is
laid over that colour, and the placement that explains most of the frame's deviation from it wins. The
winner is followed through all frames, its track is named, it is masked, and the search is run once more.
The oracle never sees a scene or a caption, and it keeps no state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.data.sprites.backgrounds import BACKGROUNDS, BASE_COLORS
from tokvid.data.sprites.sheet import SPRITES, sprite_picture
from tokvid.data.sprites.tracks import name_motion
from tokvid.data.sprites.world import ONE_SPRITE_SIZE, TWO_SPRITE_SIZE, SpriteWorldConfig
from tokvid.errors import ShapeError

WORKING_SIDE = 32  # pixels of the short side: larger frames are averaged down to it, for speed and against noise
MAX_SPRITES = 2
# Every picture is smoothed before it is compared, so that a blurred clip and a sharp template still agree.
_SMOOTH = (0.25, 0.5, 0.25)
_MARGIN = len(_SMOOTH) // 2
_LOOKS = 3  # frames of a clip on which sprites are identified; the winner is followed through all frames
_SIZE_STEP = 2  # every second size is searched: the smoothing forgives a pixel
_CHUNK = 16  # clips worked on at once
_CONTRASTS = (0.5, 1.1)  # a template may be shown at this share of its contrast
# What a named sprite must reach, and what textures and noise do not: correlation with the frames, contrast
# against the template's own, and signal (see _Match). A faint thing that stands still may be texture, and over
# a background that is none we know anything may be: there the correlation must be high.
_CORRELATION, _CONTRAST, _SIGNAL = 0.6, 0.52, 1.8
_SURE_CORRELATION, _SURE_SIGNAL = 0.81, 8.0
# What correlates this much and moves as sprites do is reported, but without a name.
_UNNAMED_CORRELATION, _UNNAMED_SIGNAL = 0.4, 4.0
_NEAR = 45.0  # of 255: pixels this close to the clip's median colour are background
_KNOWN_GROUND = 42.0  # of 255: how far a background's colour may lie from its base colour
_CALM = 36.0  # of 255: the median deviation from its median that a background may have


class SeenSprite(NamedTuple):
    """Something that was seen.

    ``sprite`` is None for a thing that moves as sprites do but resembles none; ``motion`` is None where the
    track is no motion we know or the clip has one frame; ``confidence`` in [0, 1] is the mean correlation of
    the frames with the sprite's picture; ``path`` is where its centre was in each frame, (y, x) in pixels of the clip.
    """

    sprite: str | None
    motion: str | None
    confidence: float
    path: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the oracle saw in a clip: up to two sprites, the clearest first, and the background or None."""

    sprites: tuple[SeenSprite, ...]
    background: str | None


class _Match(NamedTuple):
    """One template followed through a clip of T frames, in working pixels.

    ``signal`` is the squared deviation it explains, a pixel, in units of the background's own.
    """

    sprite: int
    size: int
    corners: Tensor  # [T,2], (top, left)
    correlation: float
    contrast: float
    signal: float


class _Bank:
    """All sprites at one size, as the weights of a convolution.

    Laid over a colour g, a sprite deviates from g by ``color - alpha * g``. So the product of a deviation d
    with it is a convolution of the four channels ``d`` and ``-(g . d)`` with ``color`` and ``alpha``.
    """

    def __init__(self, size: int) -> None:
        pictures = [sprite_picture(name, size) for name in SPRITES]
        stacked = np.stack([np.concatenate([p.color, p.alpha], axis=2) for p in pictures])
        plain = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        self.size = size
        self.weights = _smooth(F.pad(plain, [_MARGIN] * 4))  # [sprites,4,s+2m,s+2m]
        color, alpha = self.weights[:, :3], self.weights[:, 3:]
        self._color_energy = color.square().sum((1, 2, 3))
        self._color_alpha = (color * alpha).sum((2, 3))
        self._alpha_energy = alpha.square().sum((1, 2, 3))
        self.cover = (F.max_pool2d(plain[:, 3:], 3, 1, 1) > 0.05).float()  # [sprites,1,s,s], one pixel wider

    def energy(self, ground: Tensor) -> Tensor:
        """Squared deviation of every sprite from the colours ``ground`` ``[N,3]``: ``[N,sprites]``."""
        brightness = ground.square().sum(1, keepdim=True)
        energy = self._color_energy - 2.0 * ground @ self._color_alpha.T + brightness * self._alpha_energy
        return energy.clamp(min=1.0)

    def score(self, product: Tensor, energy: Tensor, squares: Tensor) -> Tensor:
        """How well each sprite explains each picture at its best place, ``[N,sprites]``.

        ``product`` is the convolution ``[N,sprites,p,q]``, ``energy`` is ``[N,sprites]`` and ``squares`` the squared
        deviation ``[N,1,h,w]``. What is explained counts in proportion to how much of the window it is: else one
        large template laid over two small sprites would beat both.
        """
        explained, place = _explained(product, energy[:, :, None, None]).flatten(2).max(2)
        side = self.size + 2 * _MARGIN
        present = (F.avg_pool2d(squares, side, 1) * side**2).flatten(2).expand(-1, len(SPRITES), -1)
        return explained * explained.clamp(min=0.0) / present.gather(2, place[:, :, None])[:, :, 0].clamp(min=1.0)


class Oracle:
    """Judges clips of one frame size; tolerant of blur, noise and shifted colours.

    It reads 99 of 100 rendered clips right (every sprite, motion and the background; 300 of 300 held-out clips at 32x32
    and at 64x64 pixels) of 17 frames. Short clips and tiny frames say too little: of 400 it read 99.8 % right with 9
    frames and 77 % with 5 (32x32 pixels), 98.5 % at 24x24 pixels and 86 % at 16x16 (17 frames).
    """

    def __init__(self, config: SpriteWorldConfig) -> None:
        height, width = config.size
        self._size = (height, width)
        shrink = max(1.0, min(height, width) / WORKING_SIDE)
        self._working = (round(height / shrink), round(width / shrink))
        short = min(self._working)
        smallest, largest = TWO_SPRITE_SIZE[0], ONE_SPRITE_SIZE[1]
        self._banks = [_Bank(size) for size in range(round(short * smallest), round(short * largest) + 1)]

    def look(self, frames: npt.NDArray[np.uint8]) -> list[Sight]:
        """Look at clips, uint8 ``[N,T,H,W,3]`` of the configured size and any T: one :class:`Sight` a clip."""
        if (
            frames.dtype != np.uint8
            or frames.ndim != 5
            or frames.shape[2:] != (*self._size, 3)
            or 0 in frames.shape[1:]
        ):
            height, width = self._size
            raise ShapeError(
                f"expected uint8 [N,T,{height},{width},3], got {frames.dtype} {list(frames.shape)};"
                " make an Oracle with the size of these clips"
            )
        sights: list[Sight] = []
        with torch.inference_mode():
            for start in range(0, len(frames), _CHUNK):
                sights += self._look(torch.from_numpy(np.ascontiguousarray(frames[start : start + _CHUNK])))
        return sights

    def _look(self, clips: Tensor) -> list[Sight]:
        pictures = clips.permute(0, 1, 4, 2, 3).float()
        if self._working != self._size:
            pictures = F.interpolate(pictures.flatten(0, 1), size=self._working, mode="area")
            pictures = pictures.unflatten(0, clips.shape[:2])
        ground, calm = _estimate_ground(pictures)
        deviation = pictures - ground[:, None, :, None, None]  # [N,T,3,h,w]
        grounds = [_name_ground(color, quiet) for color, quiet in zip(ground, calm.tolist(), strict=True)]
        seen: list[list[SeenSprite]] = [[] for _ in clips]
        active = list(range(len(clips)))
        for _ in range(MAX_SPRITES):
            found = self._search(deviation[active], ground[active])
            still = []
            for number, match in zip(active, found, strict=True):
                sprite = self._judge(match, known_ground=grounds[number] is not None, first=not seen[number])
                if sprite is not None:
                    seen[number].append(sprite)
                    self._mask(deviation[number], match)
                    still.append(number)
            active = still
            if not active:
                break
        return [Sight(sprites=tuple(s), background=name) for s, name in zip(seen, grounds, strict=True)]

    def _search(self, deviation: Tensor, ground: Tensor) -> list[_Match]:
        """The best template of each clip of ``deviation`` ``[N,T,3,h,w]``, followed through all its frames."""
        channels = _channels(deviation, ground)  # [N,T,4,h+2m,w+2m]
        number, num_frames = deviation.shape[:2]
        looks = sorted({round(float(f)) for f in np.linspace(0, num_frames - 1, _LOOKS)})
        chosen = channels[:, looks].flatten(0, 1)
        squares = chosen[:, :3].square().sum(1, keepdim=True)
        scores = []
        for bank in self._banks[::_SIZE_STEP]:
            energy = bank.energy(ground).repeat_interleave(len(looks), 0)
            best = bank.score(F.conv2d(chosen, bank.weights), energy, squares)
            scores.append(best.unflatten(0, (number, len(looks))).sum(1))
        winners = torch.stack(scores, 1).flatten(1).argmax(1)  # [N], over sizes and sprites
        matches = []
        for clip, winner in enumerate(winners.tolist()):
            bank, sprite = self._banks[winner // len(SPRITES) * _SIZE_STEP], winner % len(SPRITES)
            matches.append(_follow(channels[clip], ground[clip], bank, sprite))
        return matches

    def _judge(self, match: _Match, *, known_ground: bool, first: bool) -> SeenSprite | None:
        motion = name_motion(match.corners.numpy(), self._working)
        confidence = round(max(0.0, min(1.0, match.correlation)), 4)
        moves = motion not in (None, "stay")
        sure = known_ground and (moves or match.signal >= _SURE_SIGNAL)
        needed = _CORRELATION if sure else _SURE_CORRELATION
        if match.correlation >= needed and match.contrast >= _CONTRAST and match.signal >= _SIGNAL:
            return SeenSprite(SPRITES[match.sprite], motion, confidence, self._path(match))
        # Only the clearest thing is reported unnamed: what is left after a sprite is masked may be its rim.
        if first and moves and match.signal >= _UNNAMED_SIGNAL and match.correlation >= _UNNAMED_CORRELATION:
            return SeenSprite(None, motion, confidence, self._path(match))
        return None

    def _path(self, match: _Match) -> tuple[tuple[float, float], ...]:
        grown = [full / working for full, working in zip(self._size, self._working, strict=True)]
        centres = (match.corners + match.size / 2) * torch.tensor(grown)
        return tuple((y, x) for y, x in centres.tolist())

    def _mask(self, deviation: Tensor, match: _Match) -> None:
        """Erase ``match`` from ``deviation`` ``[T,3,h,w]`` in place, and a rim of one pixel."""
        cover = 1.0 - self._banks[match.size - self._banks[0].size].cover[match.sprite]
        for frame, (top, left) in zip(deviation, match.corners.tolist(), strict=True):
            frame[:, top : top + match.size, left : left + match.size] *= cover


def _smooth(pictures: Tensor) -> Tensor:
    """Blur the last two axes of ``[N,C,h,w]``; zero lies beyond the edges."""
    channels = pictures.shape[1]
    taps = torch.tensor(_SMOOTH)
    down = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    blurred = F.conv2d(pictures, down, padding=(_MARGIN, 0), groups=channels)
    return F.conv2d(blurred, across, padding=(0, _MARGIN), groups=channels)


def _channels(deviation: Tensor, ground: Tensor) -> Tensor:
    """``deviation`` ``[N,T,3,h,w]``, smoothed and padded, and its negative product with ``ground`` ``[N,3]``."""
    number, num_frames = deviation.shape[:2]
    smooth = _smooth(F.pad(deviation.flatten(0, 1), [_MARGIN] * 4)).unflatten(0, (number, num_frames))
    product = -(smooth * ground[:, None, :, None, None]).sum(2, keepdim=True)
    return torch.cat([smooth, product], dim=2)


def _explained(product: Tensor, energy: Tensor) -> Tensor:
    """How much squared deviation a template explains at the contrast that suits it best."""
    contrast = (product / energy).clamp(*_CONTRASTS)
    return contrast * (2.0 * product - contrast * energy)


def _follow(channels: Tensor, ground: Tensor, bank: _Bank, sprite: int) -> _Match:
    """Follow one template through the frames ``channels`` ``[T,4,h,w]`` of a clip."""
    energy = bank.energy(ground[None])[0, sprite]
    product = F.conv2d(channels, bank.weights[sprite : sprite + 1])[:, 0]
    width = product.shape[2]
    best = _explained(product, energy).flatten(1).argmax(1)  # [T]
    product = product.flatten(1).gather(1, best[:, None])[:, 0]
    side = bank.size + 2 * _MARGIN
    window = F.avg_pool2d(channels[:, :3].square().sum(1, keepdim=True), side, 1) * side**2
    present = window.flatten(1).gather(1, best[:, None])[:, 0].clamp(min=1.0)
    return _Match(
        sprite=sprite,
        size=bank.size,
        corners=torch.stack([best // width, best % width], dim=1),
        correlation=float((product / (energy * present).sqrt()).mean()),
        contrast=float((product / energy).mean()),
        signal=float((product.square() / energy).mean()) / bank.size**2 / _unrest(channels),
    )


def _unrest(channels: Tensor) -> float:
    """Mean squared deviation of the pixels of ``[T,4,h,w]`` that are background; at least 1."""
    deviation = channels[:, :3]
    near = deviation.abs().amax(1) < _NEAR
    return max(1.0, float((deviation.square().sum(1) * near).sum() / near.sum().clamp(min=1)))


def _estimate_ground(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The background colour ``[N,3]`` of clips ``[N,T,3,h,w]``, and the median deviation from it ``[N]``."""
    pixels = pictures.transpose(1, 2).flatten(2)  # [N,3,T*h*w]
    middle = pixels.median(dim=2, keepdim=True).values
    distance = (pixels - middle).abs().amax(1, keepdim=True)
    near = (distance < _NEAR).float()
    color = (pixels * near).sum(2) / near.sum(2).clamp(min=1.0)
    return color, distance[:, 0].median(dim=1).values


def _name_ground(color: Tensor, calm: float) -> str | None:
    bases = torch.tensor([BASE_COLORS[name] for name in BACKGROUNDS], dtype=torch.float32)
    distances = (bases - color).norm(dim=1)
    nearest = int(distances.argmin())
    known = float(distances[nearest]) <= _KNOWN_GROUND and calm <= _CALM
    return BACKGROUNDS[nearest] if known else None
