"""How good a video language model is: its loss on held-out clips, and the clips it draws, for whoever judges them.

Nothing here trains, and nothing here knows a recipe or an oracle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.errors import ShapeError
from tokvid.frames import to_pictures
from tokvid_lm.collate import Documents
from tokvid_lm.objectives.next_token import NextTokenObjective
from tokvid_lm.samplers.next_token import Sampling
from tokvid_lm.segments import TextSegment, VideoSegment
from tokvid_lm.video_lm import VideoLM


@dataclass(frozen=True, kw_only=True)
class CodeLosses:
    """Nats per code: of the model on held-out clips, and of guessing from how common each code is in training."""

    validation: float
    unigram_entropy: float

    @property
    def share_below_unigram(self) -> float:
        """How far the model is below guessing, in (-inf, 1]: 0 is no better, 1 knows every code."""
        return 1.0 - self.validation / self.unigram_entropy if self.unigram_entropy else 0.0

    def figures(self) -> dict[str, float]:
        """For ``metrics.json``."""
        return {
            "validation_nats_per_code": self.validation,
            "unigram_nats_per_code": self.unigram_entropy,
            "share_below_unigram": self.share_below_unigram,
        }


@torch.no_grad()
def validation_loss(
    lm: VideoLM,
    documents: Documents,
    *,
    objective: NextTokenObjective | None = None,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
) -> float:
    """Mean nats per code over all documents, captions given, in evaluation mode.

    ``objective`` is the one of a model in training, whose forward answers with a loss.
    """
    if objective is None:
        objective = NextTokenObjective(lm.model, code_offset=lm.vocabulary.code_offset)
    device = lm.model.device
    was_training = lm.model.training
    lm.model.eval()
    nats, count = 0.0, 0
    try:
        for start in range(0, len(documents), batch_size):
            batch = documents.batch(range(start, min(start + batch_size, len(documents))))
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                parts = objective(**{name: tensor.to(device) for name, tensor in batch.items()})
            nats += float(parts["code_nats"])
            count += int(parts["code_count"])
    finally:
        lm.model.train(was_training)
    return nats / count


def unigram_entropy(codes: Tensor, codebook_size: int) -> float:
    """Entropy in nats of how common each code is among ``codes`` ``[N,K,t,h,w]``, mean over the K codebooks."""
    if codes.ndim != 5:
        raise ShapeError(f"expected codes [N,K,t,h,w], got {list(codes.shape)}")
    entropies = []
    for codebook in codes.unbind(1):
        share = torch.bincount(codebook.flatten().long(), minlength=codebook_size).double()
        share = share[share > 0] / share.sum()
        entropies.append(float(-(share * share.log()).sum()))
    return sum(entropies) / len(entropies)


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnClips:
    """Clips uint8 ``[N,T,H,W,3]`` drawn from ``captions``, and the seconds it took."""

    captions: tuple[str, ...]
    frames: npt.NDArray[np.uint8]
    seconds: float


def draw_clips(
    lm: VideoLM,
    captions: Sequence[str],
    sampling: Sampling,
    *,
    num_frames: int,
    height: int,
    width: int,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DrawnClips:
    """Draw one clip from each caption; sample n has the noise of (seed, n), whatever the batch size."""
    start = time.perf_counter()
    segments = lm.generate(
        [[TextSegment(caption)] for caption in captions],
        num_frames=num_frames,
        height=height,
        width=width,
        guidance_scale=sampling.guidance_scale,
        temperature=sampling.temperature,
        # Said, not left out, where it is off: the model may have settings of its own.
        top_k=sampling.top_k or 0,
        top_p=sampling.top_p or 1.0,
        seed=sampling.seed,
        batch_size=batch_size,
        autocast=autocast,
        progress=progress,
    )
    frames = [segment.frames for segment in segments if isinstance(segment, VideoSegment)]
    pictures = np.concatenate([to_pictures(frame) for frame in frames if frame is not None])
    return DrawnClips(captions=tuple(captions), frames=pictures, seconds=time.perf_counter() - start)
