"""Refinement of a codec's frames: a diffusion head draws what decoding lost, patch by patch.

A decoder that learned a squared error gives about the mean of all videos that share the codes, which is smooth. The
head draws one of them: the difference between a clip and its decoding, in patches of pixels, given the decoding around
the patch, the codebook vectors around its cell, and what was drawn before it: the frame before, and the neighbours in
its own frame, whose patches come in four sets, each seeing the sets before it (as MAR's sets of tokens, Li et al. 2024,
arXiv 2406.11838). So neighbours agree, and a video of any length is refined frame after frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.config import from_mapping, to_mapping
from tokvid.config_checks import at_least, finite, positive
from tokvid.diffusion_head import DiffusionHead
from tokvid.errors import CheckpointError, ConfigError, ModelError, ShapeError
from tokvid.flow import Refinement, draw_latents, starting_noise
from tokvid.head_files import load_head, save_head
from tokvid.hub import CODEC_PREFIXES, HubOptions, local_folder

if TYPE_CHECKING:
    from tokvid_tokenizers.codec import VideoCodec

REFINER = "refiner"
"""The name of its files in the folder of a codec."""
SETS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Of row and column of a patch the remainders by two, in the order in which they are drawn."""
_MOST_TOKENS = 1 << 15
"""That go through the head at a time."""


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """``patch`` pixels are the side of what is drawn at a time, and as far as ``margin`` pixels around it are seen;
    what was drawn there is seen divided by ``scale``, about the deviation of what decoding loses."""

    patch: int = 4
    margin: int = 2
    scale: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, 1, "patch")
        at_least(self, 0, "margin")
        positive(self, "scale")
        finite(self, "scale")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a frame's patches are drawn after, of N frames of any clips: decodings float ``[N,3,H,W]`` in [-1, 1] of
    the frame and the one before, what was drawn of the one before, float ``[N,3,H,W]``, codebook vectors
    ``[N,D,h,w]``, and the frame's place in its group, int64 ``[N]``: 0 the first frame of all, which has none
    before."""

    plain: Tensor
    plain_before: Tensor
    drawn_before: Tensor
    vectors: Tensor
    phase: Tensor


class Refiner:
    """A head for the frames of one codec; :meth:`refine` draws, :mod:`tokvid_tokenizers.refiner_training` trains."""

    def __init__(
        self, codec: VideoCodec, config: RefinerConfig, head: DiffusionHead | None, refinement: Refinement
    ) -> None:
        codec.check_discrete()
        stride = codec.spatial_stride
        if stride % config.patch:
            raise ConfigError(
                f"a refiner's patch divides the codec's spatial stride {stride}, got {config.patch}: take {stride}"
            )
        self.codec, self.config, self.refinement = codec, config, refinement
        self._parts = stride // config.patch  # patches along the side of a cell
        self._side = config.patch + 2 * config.margin
        self._phases = codec.temporal_stride + 1
        self.channels = 3 * config.patch**2
        own = 4 * 3 * self._side**2 + 9 * codec.quantizer.dim
        self.condition_dim = own + self._phases + len(SETS) + self._parts**2
        self.head = head
        if head is not None:
            self._check(head)

    @torch.no_grad()
    def refine(self, codes: Tensor, num_frames: int | None = None, *, seed: int = 0, first_sample: int = 0) -> Tensor:
        """Frames float ``[B,3,T,H,W]`` in [-1, 1] of codes ``[B,K,t,h,w]``, as :meth:`VideoCodec.decode` has them, and
        what was drawn on them.

        The noise is a function of (seed, sample, frame, patch); the first clip is sample ``first_sample``.
        """
        plain = self.codec.decode(codes, num_frames)
        vectors = self.codec.quantizer.dequantize(codes).float()
        under_way = Refining(self, torch.arange(first_sample, first_sample + len(codes)), seed=seed)
        frames = [
            under_way.push(plain[:, :, number], vectors[:, :, self.latent_of(number)])
            for number in range(plain.shape[2])
        ]
        return torch.stack(frames, dim=2)

    def latent_of(self, frame: int) -> int:
        """The latent frame that a frame is decoded from."""
        stride = self.codec.temporal_stride
        return (frame + stride - 1) // stride if self.codec.is_causal else frame // stride

    def phase_of(self, frame: int) -> int:
        """Where a frame stands in its group, from 1; 0 for the first frame of all."""
        stride = self.codec.temporal_stride
        if not frame:
            return 0
        return 1 + ((frame - 1) % stride if self.codec.is_causal else frame % stride)

    def cut(self, difference: Tensor) -> Tensor:
        """Images ``[N,3,H,W]`` as patches ``[N,H/p,W/p,3*p*p]``."""
        p = self.config.patch
        n, c, height, width = difference.shape
        cut = difference.reshape(n, c, height // p, p, width // p, p)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def joined(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        p = self.config.patch
        n, rows, columns, _ = patches.shape
        cut = patches.unflatten(3, (3, p, p)).permute(0, 3, 1, 4, 2, 5)
        image: Tensor = cut.reshape(n, 3, rows * p, columns * p)
        return image

    def pixels_of(self, mask: Tensor) -> Tensor:
        """A mask of patches ``[rows,columns]`` as one of pixels ``[H,W]``."""
        return mask.repeat_interleave(self.config.patch, 0).repeat_interleave(self.config.patch, 1)

    def set_mask(self, number: int, rows: int, columns: int) -> Tensor:
        """Which patches are in a set: bool ``[rows,columns]``."""
        row, column = SETS[number]
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        mask[row::2, column::2] = True
        return mask

    def drawn_mask(self, number: int, rows: int, columns: int) -> Tensor:
        """Which patches are drawn before a set: bool ``[rows,columns]``."""
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        for earlier in range(number):
            mask |= self.set_mask(earlier, rows, columns)
        return mask

    def steady(self, seen: Seen) -> Tensor:
        """What every patch of a frame is given whatever its set: ``[N,rows*columns,...]``."""
        p = self.config.patch
        rows, columns = (side // p for side in seen.plain.shape[2:])
        device = seen.plain.device
        row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
        cell = (row[:, None] // self._parts * seen.vectors.shape[3] + column // self._parts).flatten()
        part = (row[:, None] % self._parts * self._parts + column % self._parts).flatten()
        shape = (len(seen.plain), rows * columns, -1)
        return torch.cat(
            [
                self._around(seen.plain, "replicate"),
                self._around(seen.plain_before, "replicate"),
                self._around(seen.drawn_before / self.config.scale, "constant"),
                self._around_cells(seen.vectors)[:, cell],
                F.one_hot(seen.phase, self._phases).to(seen.plain)[:, None].expand(shape),
                F.one_hot(part, self._parts**2).to(seen.plain).expand(shape),
            ],
            dim=2,
        )

    def conditions(self, steady: Tensor, drawn: Tensor, number: int) -> Tensor:
        """What the head is given of the patches of set ``number``, ``[N,M,condition_dim]`` in rows and columns, after
        what was ``drawn`` of the frame, ``[N,3,H,W]``."""
        rows, columns = (side // self.config.patch for side in drawn.shape[2:])
        chosen = self.set_mask(number, rows, columns).flatten().to(drawn.device)
        own = self._around(drawn / self.config.scale, "constant")[:, chosen]
        of_set = F.one_hot(torch.tensor(number, device=drawn.device), len(SETS)).to(own)
        return torch.cat([steady[:, chosen], own, of_set.expand(*own.shape[:2], -1)], dim=2)

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
            found = load_head(folder, REFINER, what="refiner", wanted=("codec_id", "refiner"))
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

    def _check(self, head: DiffusionHead) -> None:
        wanted, found = (self.channels, self.condition_dim), (head.config.latent_dim, head.config.condition_dim)
        if wanted != found:
            raise ModelError(
                f"this head draws {found[0]} numbers from conditions of {found[1]}, a refiner of this codec"
                f" {wanted[0]} from {wanted[1]}: train it anew"
            )

    def _around(self, image: Tensor, mode: str) -> Tensor:
        """Of every patch its pixels and those around it, ``[N,rows*columns,3*side*side]``."""
        margin = self.config.margin
        padded = F.pad(image, (margin,) * 4, mode=mode) if margin else image
        around: Tensor = F.unfold(padded, self._side, stride=self.config.patch).transpose(1, 2)
        return around

    def _around_cells(self, vectors: Tensor) -> Tensor:
        """Of every cell its vector and those of the eight around it, ``[N,h*w,9*D]``."""
        around: Tensor = F.unfold(F.pad(vectors, (1,) * 4, mode="replicate"), 3).transpose(1, 2)
        return around


class Refining:
    """Clips whose frames are refined one after the other; ``samples`` int64 ``[B]`` are their numbers for the noise."""

    def __init__(self, refiner: Refiner, samples: Tensor, *, seed: int = 0) -> None:
        if refiner.head is None:
            raise ModelError("this refiner was not trained: it has no head")
        self._refiner, self._head, self._samples, self._seed = refiner, refiner.head, samples, seed
        self._frame = 0
        self._before: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def push(self, plain: Tensor, vectors: Tensor) -> Tensor:
        """The next frame, float ``[B,3,H,W]`` in [-1, 1], given its decoding and the codebook vectors ``[B,D,h,w]`` of
        its latent frame. Raises :class:`ShapeError` for a frame off the codec's stride."""
        refiner, head = self._refiner, self._head
        p = refiner.config.patch
        height, width = plain.shape[2:]
        if (height, width) != tuple(side * refiner.codec.spatial_stride for side in vectors.shape[2:]):
            raise ShapeError(f"frames of {height}x{width} are not those of {vectors.shape[2]}x{vectors.shape[3]} cells")
        rows, columns = height // p, width // p
        plain = plain.float()
        plain_before, drawn_before = self._before or (plain, torch.zeros_like(plain))
        phase = torch.full((len(plain),), refiner.phase_of(self._frame), device=plain.device)
        steady = refiner.steady(
            Seen(
                plain=plain,
                plain_before=plain_before,
                drawn_before=drawn_before,
                vectors=vectors.float(),
                phase=phase,
            )
        )
        patches = torch.zeros(len(plain), rows, columns, refiner.channels, device=plain.device)
        for number in range(len(SETS)):
            mask = refiner.set_mask(number, rows, columns)
            places = mask.flatten().nonzero()[:, 0]
            if not len(places):  # of frames of one patch
                continue
            given = refiner.conditions(steady, refiner.joined(patches), number)
            patches[:, mask.to(plain.device)] = self._drawn(head, given, places + self._frame * rows * columns)
        drawn = refiner.joined(patches)
        self._before = plain, drawn
        self._frame += 1
        frame: Tensor = (plain + drawn).clamp(-1.0, 1.0)
        return frame

    def _drawn(self, head: DiffusionHead, given: Tensor, places: Tensor) -> Tensor:
        """Patches ``[B,M,3*p*p]`` given conditions ``[B,M,...]``, at ``places`` ``[M]`` among all patches of a clip."""
        count, tokens, _ = given.shape
        settings = self._refiner.refinement
        samples, at = self._samples.repeat_interleave(tokens), places.repeat(count)
        noise = starting_noise(self._seed, samples, at, head.config.latent_dim).to(given.device)
        parts = [
            draw_latents(
                head, part, own, steps=settings.steps, solver=settings.solver, temperature=settings.temperature
            )
            for part, own in zip(given.flatten(0, 1).split(_MOST_TOKENS), noise.split(_MOST_TOKENS), strict=True)
        ]
        patches: Tensor = torch.cat(parts).unflatten(0, (count, tokens))
        return patches
