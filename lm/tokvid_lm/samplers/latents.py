"""Latents drawn frame by frame, the cells of a frame in random sets (NOVA, Deng et al. 2024, arXiv 2412.14169; MAR, Li
et al. 2024, arXiv 2406.11838).

The model sees a frame with what is drawn of it, a diffusion head draws the next set from the hidden states where
``<|mask|>`` stands, and a finished frame is fed once more, as it is: that pass stays.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from tokvid.flow import Refinement, draw_latents, starting_noise
from tokvid.noise import uniform
from tokvid_lm.continuous import LatentHead
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.masked import frame_by_frame
from tokvid_lm.samplers.runner import Runner
from tokvid_lm.samplers.sampling import Sampling

# Parts the noise that chooses the sets from the noise that latents start from.
_ORDER = 0x0D3E


def sample_latents(
    runner: Runner,
    canvas: Canvas,
    head: LatentHead,
    code_id: int,
    sampling: Sampling,
    refinement: Refinement,
    sample_indices: Tensor,
) -> Tensor:
    """Latents ``[rows,L,C]``, standing where the codes of ``canvas`` would; ``code_id`` stands for any latent.

    Sets and noise are functions of (seed, sample, place). With guidance the runner has twice as many rows, the
    conditional ones first.
    """
    runner.prefill()
    rows, length = canvas.ids.shape
    numbers = torch.arange(length)
    samples, places = sample_indices.repeat_interleave(length), numbers.repeat(rows)
    drawer = _Drawer(
        runner=runner,
        canvas=canvas,
        head=head,
        code_id=code_id,
        sampling=sampling,
        refinement=refinement,
        order=uniform(sampling.seed, sample_indices[:, None], numbers[None], torch.tensor(_ORDER)),
        noise=starting_noise(sampling.seed, samples, places, head.config.latent_dim).unflatten(0, (rows, length)),
        place_ids=runner.place_ids(canvas.coordinates(runner.lengths, slice(0, length))),
        latents=torch.zeros(rows, length, head.config.latent_dim),
        known=torch.zeros(rows, length, dtype=torch.bool),
    )
    for _ in frame_by_frame(canvas, sampling, drawer.draw, drawer.commit):
        pass
    return drawer.latents


@dataclass(kw_only=True, eq=False)
class _Drawer:
    """The ``latents`` of a canvas under way, which of its places hold one (``known``), the ``order`` in which those of
    a frame are drawn, and the ``noise`` that each starts from."""

    runner: Runner
    canvas: Canvas
    head: LatentHead
    code_id: int
    sampling: Sampling
    refinement: Refinement
    order: Tensor
    noise: Tensor
    place_ids: Tensor
    latents: Tensor
    known: Tensor

    def draw(self, places: slice, steps: int) -> None:
        """Draw all cells of ``places`` in at most ``steps`` sets, and feed nothing that stays."""
        wanted = self.canvas.wanted[:, places]
        count = int(wanted[0].sum())
        steps = min(steps, count)
        # What is no cell comes last, and is never reached.
        order = self.order[:, places].masked_fill(~wanted, 2.0).argsort(dim=1, stable=True)
        left = [count, *self.sampling.schedule.counts(count, steps)]
        for before, after in itertools.pairwise(left):
            features = self.runner.feed(self._fed(places), self.place_ids[..., places], block=True, keep=False)
            chosen = order[:, count - before : count - after]
            self._draw_set(features, places, chosen, self.sampling.guidance_at(1 - after / count))

    def commit(self, places: slice) -> None:
        """Feed finished ``places`` as they are; that is what later frames see."""
        self.runner.feed(self._fed(places), self.place_ids[..., places], block=True)

    def _draw_set(self, features: Tensor, places: slice, chosen: Tensor, guidance_scale: float) -> None:
        """Draw the cells ``chosen`` ``[rows,m]``, numbered within ``places``."""
        rows, sampling = len(chosen), self.sampling
        row = torch.arange(rows)[:, None].expand_as(chosen)
        at, of = chosen.to(features.device), row.to(features.device)
        conditions = features[of, at].flatten(0, 1).float()
        null = features[of + rows, at].flatten(0, 1).float() if sampling.guided else None
        noise = self.noise[row, chosen + places.start].flatten(0, 1).to(conditions.device)
        with torch.autocast(conditions.device.type, enabled=False):
            drawn = draw_latents(
                self.head,
                conditions,
                noise,
                steps=self.refinement.steps,
                solver=self.refinement.solver,
                temperature=sampling.temperature * self.refinement.temperature,
                guidance_scale=guidance_scale,
                null_conditions=null,
            )
        self.latents[row, chosen + places.start] = drawn.cpu().unflatten(0, (rows, -1))
        self.known[row, chosen + places.start] = True

    def _fed(self, places: slice) -> Tensor:
        """What the model reads of ``places``, ``[rows,n,H]``, twice with guidance."""
        known = self.known[:, places]
        ids = torch.where(known, self.code_id, self.canvas.ids[:, places])
        embedded = self.runner.embed(ids)
        device = embedded.device
        read = self.head.read(embedded, self.latents[:, places].to(device), known.to(device))
        return torch.cat([read, read]) if self.sampling.guided else read
