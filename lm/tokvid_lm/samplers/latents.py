"""Latents drawn frame by frame, the cells of a frame in random sets (NOVA, Deng et al. 2024, arXiv 2412.14169; MAR, Li
et al. 2024, arXiv 2406.11838).

The model sees a frame with what is drawn of it, a diffusion head draws the next set from the hidden states where
``<|mask|>`` stands, and a finished frame is fed once more, as it is: that pass stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokvid.flow import Refinement, draw_latents, starting_noise
from tokvid.noise import uniform
from tokvid_lm.continuous import LatentHead
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.runner import Runner
from tokvid_lm.samplers.sampling import Sampling

# Parts the noise that chooses the sets from the noise that latents start from.
_ORDER = 0x0D3E


def sample_latents(
    runner: Runner,
    canvas: Canvas,
    head: LatentHead,
    embed: Callable[[Tensor], Tensor],
    code_id: int,
    sampling: Sampling,
    refinement: Refinement,
    sample_indices: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """``(latent frame, latents [rows,L,C])`` after each finished one, standing where the codes of ``canvas`` would.

    ``embed`` gives the model's embeddings of ids, ``code_id`` stands for any latent. Sets and noise are functions of
    (seed, sample, place). With guidance the runner has twice as many rows, the conditional ones first.
    """
    runner.prefill()
    drawer = _Drawer(runner, canvas, head, embed, code_id, sampling, refinement, sample_indices)
    last = int(canvas.frame[-1])
    for frame in range(last + 1):
        places = canvas.places(frame)
        steps = sampling.first_steps if frame == 0 and sampling.first_steps else sampling.steps
        drawer.draw(places, steps)
        yield frame, drawer.latents
        if frame < last:
            drawer.commit(places)


class _Drawer:
    """The latents of a canvas under way, and which of its places hold one."""

    def __init__(
        self,
        runner: Runner,
        canvas: Canvas,
        head: LatentHead,
        embed: Callable[[Tensor], Tensor],
        code_id: int,
        sampling: Sampling,
        refinement: Refinement,
        sample_indices: Tensor,
    ) -> None:
        rows, length = canvas.ids.shape
        self._runner, self._canvas, self._head, self._embed = runner, canvas, head, embed
        self._code_id, self._sampling, self._refinement = code_id, sampling, refinement
        self._device = next(head.parameters()).device
        self.latents = torch.zeros(rows, length, head.config.latent_dim)
        self._known = torch.zeros(rows, length, dtype=torch.bool)
        self._place_ids = runner.place_ids(canvas.coordinates(runner.lengths, slice(0, length)))
        numbers = torch.arange(length)
        self._order = uniform(sampling.seed, sample_indices[:, None], numbers[None], torch.tensor(_ORDER))
        samples, places = sample_indices.repeat_interleave(length), numbers.repeat(rows)
        noise = starting_noise(sampling.seed, samples, places, head.config.latent_dim)
        self._noise = noise.unflatten(0, (rows, length))

    def draw(self, places: slice, steps: int) -> None:
        """Draw all cells of ``places`` in at most ``steps`` sets, and feed nothing that stays."""
        wanted = self._canvas.wanted[:, places]
        count = int(wanted[0].sum())
        steps = min(steps, count)
        # What is no cell comes last, and is never reached.
        order = self._order[:, places].masked_fill(~wanted, 2.0).argsort(dim=1, stable=True)
        left = [count, *self._sampling.schedule.counts(count, steps)]
        for before, after in itertools.pairwise(left):
            features = self._runner.feed(self._fed(places), self._place_ids[..., places], block=True, keep=False)
            chosen = order[:, count - before : count - after]
            self._draw_set(features, places, chosen)

    def commit(self, places: slice) -> None:
        """Feed finished ``places`` as they are; that is what later frames see."""
        self._runner.feed(self._fed(places), self._place_ids[..., places], block=True)

    def _draw_set(self, features: Tensor, places: slice, chosen: Tensor) -> None:
        """Draw the cells ``chosen`` ``[rows,m]``, numbered within ``places``."""
        rows, sampling = len(chosen), self._sampling
        row = torch.arange(rows)[:, None].expand_as(chosen)
        at, of = chosen.to(features.device), row.to(features.device)
        conditions = features[of, at].flatten(0, 1).float()
        null = features[of + rows, at].flatten(0, 1).float() if sampling.guided else None
        noise = self._noise[row, chosen + places.start].flatten(0, 1).to(conditions.device)
        with torch.autocast(conditions.device.type, enabled=False):
            drawn = draw_latents(
                self._head,
                conditions,
                noise,
                steps=self._refinement.steps,
                solver=self._refinement.solver,
                temperature=sampling.temperature * self._refinement.temperature,
                guidance_scale=sampling.guidance_scale,
                null_conditions=null,
                guidance_ramp=False,
            )
        self.latents[row, chosen + places.start] = drawn.cpu().unflatten(0, (rows, -1))
        self._known[row, chosen + places.start] = True

    def _fed(self, places: slice) -> Tensor:
        """What the model reads of ``places``, ``[rows,n,H]``, twice with guidance."""
        known = self._known[:, places]
        ids = torch.where(known, self._code_id, self._canvas.ids[:, places])
        embedded = self._embed(ids.to(self._device))
        read = self._head.read(embedded, self.latents[:, places].to(self._device), known.to(self._device))
        return torch.cat([read, read]) if self._sampling.guided else read
