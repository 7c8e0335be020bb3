"""Refinement of a codec's frames: a diffusion head draws what decoding lost, patch by patch.

A decoder that learned a squared error gives about the mean of all videos that share the codes, which is smooth. The
head draws one of them: the difference between a clip and its decoding, in patches, given the decoding and the codebook
vectors around the patch, and what was drawn before it: the frame before, and the neighbours in its own frame, whose
patches come in four sets, each seeing the sets before it (as MAR's sets of tokens, Li et al. 2024, arXiv 2406.11838).
So neighbours agree, and a video of any length is refined frame after frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.config import from_mapping, to_mapping
from tokvid.config_checks import at_least
from tokvid.diffusion_head import DiffusionHead, HeadConfig
from tokvid.errors import CheckpointError, ConfigError, ModelError, ShapeError
from tokvid.flow import Refinement, draw_latents, starting_noise
from tokvid.head_files import drawn_by, load_head, save_head
from tokvid.hub import CODEC_PREFIXES, HubOptions, local_folder
from tokvid_tokenizers.refiner_head import RefinerHead, RefinerHeadConfig

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
    """``patch`` pixels are the side of what is drawn at a time. It is drawn after ``width`` numbers, made of what is
    seen in its place and, by ``looks`` convolutions, as many patches around it."""

    patch: int = 4
    width: int = 128
    looks: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "patch", "width")
        at_least(self, 0, "looks")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a frame's patches are drawn after, of N frames of any clips, in patches ``[N,rows,columns,C]`` of
    :meth:`Refiner.cut`: decodings of the frame and the one before, what was drawn of the one before (0 of the first,
    which has none), and of the frame itself where it is ``known``, bool ``[N,rows,columns]``; codebook vectors
    ``[N,D,h,w]``, the frame's place in its group, int64 ``[N]``, and the number of the set that is next, int64
    ``[N]``."""

    plain: Tensor
    plain_before: Tensor
    drawn_before: Tensor
    drawn: Tensor
    known: Tensor
    vectors: Tensor
    phase: Tensor
    number: Tensor


class Refiner:
    """A head for the frames of one codec; :meth:`refine` draws, :mod:`tokvid_tokenizers.refiner_training` trains."""

    def __init__(
        self, codec: VideoCodec, config: RefinerConfig, head: RefinerHead | None, refinement: Refinement
    ) -> None:
        codec.check_discrete()
        stride = codec.spatial_stride
        if stride % config.patch:
            raise ConfigError(
                f"a refiner's patch divides the codec's spatial stride {stride}, got {config.patch}: take {stride}"
            )
        self.codec, self.config, self.refinement = codec, config, refinement
        self._parts = stride // config.patch  # patches along the side of a cell
        self._phases = codec.temporal_stride + 1
        self.channels = 3 * config.patch**2
        self._basis = _waves(config.patch)
        self.seen_dim = 4 * self.channels + 1 + codec.quantizer.dim + self._phases + len(SETS) + self._parts**2
        self.head = head
        if head is not None:
            self._check(head)

    def new_head(self, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float]) -> RefinerHead:
        """A head that was not trained, for patches of that ``mean`` and ``deviation`` a channel."""
        return RefinerHead(
            RefinerHeadConfig(
                condition_dim=self.config.width,
                mean=tuple(mean),
                deviation=tuple(deviation),
                seen_dim=self.seen_dim,
                looks=self.config.looks,
                **to_mapping(config),
            )
        )

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
        """Images ``[N,3,H,W]`` as patches ``[N,H/p,W/p,3*p*p]``, told in waves."""
        p = self.config.patch
        n, c, height, width = difference.shape
        cut = difference.reshape(n, c, height // p, p, width // p, p)
        patches: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(3) @ self._basis.to(difference).T
        return patches

    def joined(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        p = self.config.patch
        n, rows, columns, _ = patches.shape
        cut = (patches @ self._basis.to(patches)).unflatten(3, (3, p, p)).permute(0, 3, 1, 4, 2, 5)
        image: Tensor = cut.reshape(n, 3, rows * p, columns * p)
        return image

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

    def conditions(self, head: RefinerHead, seen: Seen) -> Tensor:
        """What ``head`` draws each patch after, ``[N,rows,columns,D]``."""
        count, rows, columns, _ = seen.plain.shape

        def of_all(each: Tensor) -> Tensor:
            return each[:, None, None].expand(count, rows, columns, -1)

        def of_drawn(drawn: Tensor, known: Tensor) -> Tensor:
            return head.standardise(drawn).masked_fill(~known[..., None], 0.0)

        parts = torch.eye(self._parts**2).to(seen.plain).unflatten(0, (self._parts, self._parts))
        cells = seen.vectors.permute(0, 2, 3, 1)
        has_before = (seen.phase > 0)[:, None, None].expand(count, rows, columns)
        return head.conditions(
            torch.cat(
                [
                    seen.plain,
                    seen.plain_before,
                    of_drawn(seen.drawn_before, has_before),
                    of_drawn(seen.drawn, seen.known),
                    seen.known[..., None].to(seen.plain),
                    cells.repeat_interleave(self._parts, 1).repeat_interleave(self._parts, 2),
                    of_all(F.one_hot(seen.phase, self._phases).to(seen.plain)),
                    of_all(F.one_hot(seen.number, len(SETS)).to(seen.plain)),
                    parts.repeat(*cells.shape[1:3], 1).expand(count, rows, columns, -1),
                ],
                dim=3,
            )
        )

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
            found = load_head(folder, REFINER, what="refiner", kind=RefinerHead, wanted=("codec_id", "refiner"))
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
        wanted, found = (self.channels, self.seen_dim), (config.latent_dim, config.seen_dim)
        if wanted != found:
            raise ModelError(
                f"this head draws {found[0]} numbers from {found[1]} that it sees, a refiner of this codec {wanted[0]}"
                f" from {wanted[1]}: train it anew"
            )


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
        patches = refiner.cut(plain.float())
        plain_before, drawn_before = self._before or (patches, torch.zeros_like(patches))
        drawn = torch.zeros_like(patches)
        phase = torch.full((len(plain),), refiner.phase_of(self._frame), device=plain.device)
        for number in range(len(SETS)):
            mask = refiner.set_mask(number, rows, columns).to(plain.device)
            places = mask.flatten().nonzero()[:, 0]
            if not len(places):  # of frames of one patch
                continue
            seen = Seen(
                plain=patches,
                plain_before=plain_before,
                drawn_before=drawn_before,
                drawn=drawn,
                known=refiner.drawn_mask(number, rows, columns).to(plain.device).expand(len(plain), -1, -1),
                vectors=vectors.float(),
                phase=phase,
                number=torch.full_like(phase, number),
            )
            given = refiner.conditions(head, seen)[:, mask]
            drawn[:, mask] = self._drawn(head, given, places.cpu() + self._frame * rows * columns)
        self._before = patches, drawn
        self._frame += 1
        frame: Tensor = (plain.float() + refiner.joined(drawn)).clamp(-1.0, 1.0)
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


def _waves(side: int) -> Tensor:
    """An orthonormal basis ``[3*p*p,3*p*p]`` of patches: brightness and two differences of colours, each in cosines.

    Most of what decoding loses is bright and slow. Its channels have a deviation each, by which noise starts and errors
    count; of pixels all would have the same one, and what the head has not learned would show as coloured grain.
    """
    place = torch.arange(side, dtype=torch.float64)
    cosines = torch.cos(math.pi / side * (place[None] + 0.5) * place[:, None]) * (2 / side) ** 0.5
    cosines[0] /= 2**0.5
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    return torch.kron(torch.kron(colours, cosines), cosines).float()
