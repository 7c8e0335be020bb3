"""Measuring a codec on clips it never saw: fidelity, and how it uses its codebook."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokvid.frames import to_model, to_pictures
from tokvid.metrics.codebook_usage import CodebookUsage
from tokvid.metrics.psnr_ssim import psnr
from tokvid_tokenizers.codec import VideoCodec


@dataclass(frozen=True, kw_only=True)
class CodecEvaluation:
    """PSNR is per clip over uint8 RGB, then the mean over clips (dB); usage is a share of the codebook."""

    clips: int
    codes: int
    psnr: float
    psnr_each: list[float]
    codebook_usage: float
    perplexity: float
    unigram_entropy_bits: float

    def figures(self) -> dict[str, float]:
        """The figures without the list of single clips, for tables and JSON."""
        return {name: value for name, value in asdict(self).items() if name != "psnr_each"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructions:
    """What a codec makes of clips: ``pictures`` uint8 ``[N,T,H,W,3]``, and their ``codes`` int64 ``[N,K,t,h,w]``."""

    pictures: npt.NDArray[np.uint8]
    codes: Tensor


def reconstruct(codec: VideoCodec, clips: npt.NDArray[np.uint8], batch_size: int = 32) -> Reconstructions:
    """Encode and decode uint8 clips ``[N,T,H,W,3]``, in the precision of the autocast around the call.

    The codes are on the processor.
    """
    device = next(codec.parameters()).device
    pictures, codes = [], []
    with torch.inference_mode():
        for first in range(0, len(clips), batch_size):
            batch = codec.encode(to_model(clips[first : first + batch_size]).to(device))
            pictures.append(to_pictures(codec.decode(batch, num_frames=clips.shape[1])))
            codes.append(batch.cpu())
    return Reconstructions(pictures=np.concatenate(pictures), codes=torch.cat(codes))


def evaluate_reconstructions(
    codec: VideoCodec, clips: npt.NDArray[np.uint8], reconstructions: Reconstructions
) -> CodecEvaluation:
    """Measure what ``codec`` made of uint8 clips ``[N,T,H,W,3]``."""
    pictures, codes = reconstructions.pictures, reconstructions.codes
    each = [psnr(original, picture) for original, picture in zip(clips, pictures, strict=True)]
    usage = CodebookUsage(codec.codebook_size, codec.num_codebooks)
    usage.update(codes)
    stats = usage.stats()
    return CodecEvaluation(
        clips=len(clips),
        codes=codes.numel(),
        psnr=float(np.mean(each)),
        psnr_each=each,
        codebook_usage=stats.usage,
        perplexity=stats.perplexity,
        unigram_entropy_bits=stats.entropy_bits,
    )
