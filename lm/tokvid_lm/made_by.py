"""What made a video, for its metadata: the model, what it was asked, how it drew, and with which versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from tokvid.config import to_mapping
from tokvid.provenance import provenance
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_lm import VideoLM

_SAMPLED = 4096  # values of a tensor that are looked at: all of a large model would take longer than a clip


def model_id(lm: VideoLM) -> str:
    """``tokvid-lm-`` and 16 hexadecimal digits: a digest of the ids' plan, and of every tensor's name, shape and up to
    4,096 of its values, spread over it.

    It tells trained models apart; it does not prove that no value was changed.
    """
    digest = hashlib.sha256(json.dumps(lm.vocabulary.to_mapping(), sort_keys=True).encode())
    # A head that refines codes changes no code, one that draws latents makes the video.
    tensors = {**lm.model.state_dict(), **({} if lm.latent_head is None else lm.latent_head.state_dict())}
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().flatten()
        places = torch.linspace(0, max(0, len(flat) - 1), min(len(flat), _SAMPLED)).long()
        values = flat[places.to(flat.device)].float().cpu().numpy()
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.tobytes())
    return f"tokvid-lm-{digest.hexdigest()[:16]}"


def made_by(
    lm: VideoLM, *, name: str, model: str, sampling: Sampling, prompt: Sequence[int], **more: Any
) -> dict[str, Any]:
    """Provenance of a clip that ``lm``, which the user calls ``name`` and whose :func:`model_id` is ``model``, drew
    after the ids of ``prompt``."""
    read = torch.tensor(prompt, dtype=torch.int64).numpy().tobytes()
    return {
        "model": name,
        "model_id": model,
        "codec": lm.codec.codec_id,
        "sampling": to_mapping(sampling),
        "prompt_sha256": hashlib.sha256(read).hexdigest(),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        **more,
        **provenance(sampling.seed),
    }
