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
    """PSNR is per clip over uint8 RGB, then the mean over clips (dB); usage is a share of the codebook, and dead are
    the codes that no clip had.

    What is said of codes is None of a continuous codec.
    """

    clips: int
    codes: int
    psnr: float
    psnr_each: list[float]
    codebook_usage: float | None
    dead_codes: int | None
    perplexity: float | None
    unigram_entropy_bits: float | None

    def figures(self) -> dict[str, float]:
        """The figures without the list of single clips, for tables and JSON."""
        return {name: value for name, value in asdict(self).items() if name != "psnr_each" and value is not None}


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
            frames = to_model(clips[first : first + batch_size]).to(device)
            if codec.num_codebooks:
                batch = codec.encode(frames)
                decoded = codec.decode(batch, num_frames=clips.shape[1])
            else:
                latents = codec.encode_latents(frames)
                decoded = codec.decode_latents(latents, num_frames=clips.shape[1])
                batch = torch.empty((len(latents), 0, *latents.shape[2:]), dtype=torch.int64)
            pictures.append(to_pictures(decoded))
            codes.append(batch.cpu())
    return Reconstructions(pictures=np.concatenate(pictures), codes=torch.cat(codes))


def evaluate_reconstructions(
    codec: VideoCodec, clips: npt.NDArray[np.uint8], reconstructions: Reconstructions
) -> CodecEvaluation:
    """Measure what ``codec`` made of uint8 clips ``[N,T,H,W,3]``."""
    pictures, codes = reconstructions.pictures, reconstructions.codes
    each = [psnr(original, picture) for original, picture in zip(clips, pictures, strict=True)]
    stats = None
    if codec.num_codebooks:
        usage = CodebookUsage(codec.codebook_size, codec.num_codebooks)
        usage.update(codes)
        stats = usage.stats()
    return CodecEvaluation(
        clips=len(clips),
        codes=codes.numel(),
        psnr=float(np.mean(each)),
        psnr_each=each,
        codebook_usage=stats.usage if stats else None,
        dead_codes=stats.dead if stats else None,
        perplexity=stats.perplexity if stats else None,
        unigram_entropy_bits=stats.entropy_bits if stats else None,
    )
