"""Masked sampling: all codes at once (MaskGIT, Chang et al. 2022, arXiv 2202.04200), or those of frame after frame.

Each step draws every code that is still masked and keeps the surest; how many stay masked is the schedule's business.
Nothing that was tried stays in the cache; frame by frame a finished frame is fed once more, as it is, and that pass
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokvid.guidance import guide
from tokvid.noise import uniform
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.runner import Rows
from tokvid_lm.samplers.sampling import Sampling, draw
from tokvid_lm.vocabulary import VideoVocabulary

# Parts the noise that chooses what stays from the noise that draws it.
_CHOICE = 0xC401CE


def sample_at_once(
    runner: Rows, canvas: Canvas, vocabulary: VideoVocabulary, sampling: Sampling, sample_indices: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Draw all wanted codes together; one ``(last latent frame, ids [rows,L])``.

    The arguments are those of :func:`~tokvid_lm.samplers.next_token.sample_codes`.
    """
    runner.prefill()
    refiner = _Refiner(runner, canvas, vocabulary, sampling, sample_indices)
    refiner.refine(slice(0, len(canvas)), sampling.steps)
    yield int(canvas.frame[-1]), refiner.ids


def sample_by_frame(
    runner: Rows, canvas: Canvas, vocabulary: VideoVocabulary, sampling: Sampling, sample_indices: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Draw the wanted codes latent frame by latent frame; ``(latent frame, ids [rows,L])`` after each finished one."""
    runner.prefill()
    refiner = _Refiner(runner, canvas, vocabulary, sampling, sample_indices)
    for frame in frame_by_frame(canvas, sampling, refiner.refine, refiner.commit):
        yield frame, refiner.ids


def frame_by_frame(
    canvas: Canvas, sampling: Sampling, draw: Callable[[slice, int], None], commit: Callable[[slice], None]
) -> Iterator[int]:
    """Each latent frame once ``draw(places, steps)`` has drawn it; all but the last are then committed."""
    last = int(canvas.frame[-1])
    for frame in range(last + 1):
        places = canvas.places(frame)
        draw(places, sampling.first_steps if frame == 0 and sampling.first_steps else sampling.steps)
        yield frame
        if frame < last:
            commit(places)


class _Refiner:
    """The ids of a canvas under way, ``ids`` ``[rows,L]``, and the steps that draw them."""

    def __init__(
        self, runner: Rows, canvas: Canvas, vocabulary: VideoVocabulary, sampling: Sampling, sample_indices: Tensor
    ) -> None:
        self.ids = canvas.ids.clone()
        self._runner, self._canvas = runner, canvas
        self._sampling, self._samples = sampling, sample_indices
        self._place_ids = runner.place_ids(canvas.coordinates(runner.lengths, slice(0, len(canvas))))
        self._ranges = [vocabulary.slot_range(slot) for slot in range(vocabulary.slots)]

    def refine(self, places: slice, steps: int) -> None:
        """Draw what is wanted of ``places`` in at most ``steps`` steps, and feed nothing that stays."""
        wanted = self._canvas.wanted[:, places]
        # More steps than a row has codes would have nothing to do, whatever the others of the batch need.
        counts = wanted.sum(1).tolist()
        steps_of = [min(steps, count) for count in counts]
        left = torch.zeros(len(counts), max(steps_of), dtype=torch.int64)
        for row, (count, own) in enumerate(zip(counts, steps_of, strict=True)):
            left[row, :own] = torch.tensor(self._sampling.schedule.counts(count, own))
        masked = wanted.clone()
        for step in range(max(steps_of)):
            scales = [
                self._sampling.guidance_at(1.0 - after / max(1, count))
                for after, count in zip(left[:, step].tolist(), counts, strict=True)
            ]
            drawn, log_probability = self._draw(places, masked, step, torch.tensor(scales))
            noise = [self._sampling.choice_noise(min(1.0, (step + 1) / max(1, own))) for own in steps_of]
            surety = log_probability + torch.tensor(noise)[:, None] * self._gumbel(places, step)
            surety = surety.masked_fill(~masked, float("inf"))
            # By rank and not by a threshold: with ties a threshold keeps more or fewer than it should.
            rank = surety.argsort(dim=1, stable=True).argsort(dim=1)
            stays = masked & (rank < left[:, step, None])
            self.ids[:, places] = torch.where(
                masked, drawn.masked_fill(stays, self._canvas.mask_id), self.ids[:, places]
            )
            masked = stays

    def commit(self, places: slice) -> None:
        """Feed finished ``places`` as they are; that is what later frames see."""
        self._runner.feed(self._fed(places), self._place_ids[..., places], block=True)

    def _draw(self, places: slice, masked: Tensor, step: int, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and their log-probabilities, ``[rows,n]``, drawn where ``masked``; guided by ``scales`` ``[rows]``."""
        rows, sampling = len(masked), self._sampling
        features = self._runner.feed(self._fed(places), self._place_ids[..., places], block=True, keep=False)
        drawn = torch.full(masked.shape, self._canvas.mask_id)
        log_probability = torch.zeros(masked.shape)
        numbers = torch.arange(places.start, places.stop)
        noise = uniform(sampling.seed, self._samples[:, None], numbers[None], torch.tensor(step))
        for slot, ids in enumerate(self._ranges):
            row, column = (masked & (self._canvas.slot[places] == slot)).nonzero(as_tuple=True)
            if not len(row):
                continue
            chosen = features[row.to(features.device), column.to(features.device)]
            logits = self._runner.logits(chosen, ids.start, ids.stop)
            if sampling.guided:
                other = features[(row + rows).to(features.device), column.to(features.device)]
                scale = scales[row, None].to(logits)
                logits = guide(logits, self._runner.logits(other, ids.start, ids.stop), scale)
            value = draw(logits, noise[row, column].to(logits.device), sampling)
            known = logits.log_softmax(1).gather(1, value[:, None])[:, 0]
            drawn[row, column], log_probability[row, column] = value.cpu() + ids.start, known.cpu()
        return drawn, log_probability

    def _gumbel(self, places: slice, step: int) -> Tensor:
        numbers = torch.arange(places.start, places.stop)
        counters = (self._samples[:, None], numbers[None], torch.tensor(step), torch.tensor(_CHOICE))
        noise = uniform(self._sampling.seed, *counters).double().clamp_min(2.0**-24)
        return -(-noise.log()).log().float()

    def _fed(self, places: slice) -> Tensor:
        return self._canvas.fed(self.ids, places, self._sampling)
