"""Hybrid decode: a diffusion head puts back what the codes of a finished video round off (HART, Tang et al. 2024, arXiv
2410.10812).

The head sees, of each cell, its codebook vector and the hidden state of the language model at the place of its code,
when the finished video is read once more; it gives the difference between the codec's latent and the codebook vector.
The codes stay as they were drawn. How a head learns is the business of :mod:`tokvid_lm.head_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokvid.diffusion_head import DiffusionHead
from tokvid.errors import ModelError
from tokvid.flow import Refinement, draw_latents, starting_noise
from tokvid.grid import Grid
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.head import hidden_size
from tokvid_lm.processor import codec_device
from tokvid_lm.reading import read_documents
from tokvid_lm.samplers.runner import Way, sampling_from
from tokvid_lm.segments import Segment
from tokvid_lm.templates import VideoHeader
from tokvid_lm.vocabulary import Mode

if TYPE_CHECKING:
    from tokvid_lm.generation import Request
    from tokvid_lm.video_lm import VideoLM

HEAD = "diffusion_head"
"""The name of its files in the folder of a model."""


def check_no_actions(lm: VideoLM) -> None:
    """Raise :class:`ModelError` for a model that draws from actions: the clips that heads learn from have none."""
    if lm.vocabulary.num_actions:
        raise ModelError(
            f"this model draws videos from {lm.vocabulary.num_actions} actions, and the clips that a head learns from"
            " have none: there are no heads for such models yet"
        )


def check_head(lm: VideoLM, head: DiffusionHead) -> None:
    """Raise :class:`ModelError` unless ``head`` fits the codec and the hidden states of ``lm``."""
    check_no_actions(lm)
    channels, hidden = lm.codec.quantizer.dim, hidden_size(lm.model)
    expected = (channels, hidden if lm.is_continuous else channels + hidden)
    found = (head.config.latent_dim, head.config.condition_dim)
    if found != expected:
        raise ModelError(
            f"the diffusion head draws {found[0]} channels from conditions of {found[1]} numbers, this model's latents"
            f" have {expected[0]} and its conditions {expected[1]}: train a head for it"
        )


def head_of(lm: VideoLM) -> DiffusionHead:
    """The head of ``lm``; raises :class:`ModelError` where it has none, and of a model with actions."""
    check_no_actions(lm)
    if lm.diffusion_head is None:
        raise ModelError(
            "hybrid needs a model with a diffusion head, and this one has none: train one by the recipe"
            " lm/sprites-hybrid, with --lm= this model and --data of what it was trained on, or leave hybrid out"
        )
    return lm.diffusion_head


def finished(lm: VideoLM, segments: Sequence[Segment], codes: Tensor, header: VideoHeader) -> Document:
    """The document of a prompt and the video ``codes`` ``[K,t,h,w]`` that answers it, in the mode it was drawn in."""
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write(writer, segments)
    code_ids = lm.processor.code_ids(codes[None])[0].numpy()
    writer.video(code_ids, header, asked=code_ids < 0)
    return writer.finish()


@torch.no_grad()
def conditions(lm: VideoLM, documents: Sequence[Document], codes: Tensor) -> Tensor:
    """What a head is given of each cell, float32 ``[B,t,h,w,D+H]``: its codebook vector and its hidden state.

    ``codes`` ``[B,K,t,h,w]`` of the video that ends each document. Of a cell with several ids the hidden state is that
    of the last, which has seen the others. Raises :class:`ModelError` for documents beyond the model's context.
    """
    t, h, w = codes.shape[2:]
    slots = lm.vocabulary.slots
    device = lm.model.device
    _, read = read_documents(lm, documents, by=lm.model.base_model)
    hidden = read.last_hidden_state.float()
    cells = t * h * w * slots
    taken = torch.stack(
        [
            row[torch.from_numpy(document.content).nonzero()[-cells:, 0].to(device)]
            for row, document in zip(hidden, documents, strict=True)
        ]
    )
    # Of every id in the order of its number within a frame, (row*w + column)*P + slot.
    order = lm.layout.frame_order(h, w, slots).to(device).argsort()
    by_cell = taken.unflatten(1, (t, -1))[:, :, order].unflatten(2, (h, w, slots))[..., -1, :]
    vectors = lm.codec.quantizer.dequantize(codes.to(codec_device(lm.codec))).float().permute(0, 2, 3, 4, 1)
    return torch.cat([vectors.to(device), by_cell], dim=-1)


@torch.no_grad()
def refined_latents(
    head: DiffusionHead, given: Tensor, samples: Tensor, *, seed: int, refinement: Refinement
) -> Tensor:
    """Latents float32 ``[B,D,t,h,w]``: of each cell the codebook vector and a drawn difference.

    ``given`` is what :func:`conditions` gives. The noise is a function of (seed, sample, cell, channel).
    """
    rows, t, h, w, _ = given.shape
    channels = head.config.latent_dim
    flat = given.flatten(0, 3)
    places = torch.arange(t * h * w)
    noise = starting_noise(seed, samples.repeat_interleave(len(places)), places.repeat(rows), channels)
    difference = draw_latents(
        head,
        flat,
        noise.to(flat.device),
        steps=refinement.steps,
        solver=refinement.solver,
        temperature=refinement.temperature,
    )
    latents: Tensor = (flat[:, :channels] + difference).unflatten(0, (rows, t, h, w)).permute(0, 4, 1, 2, 3)
    return latents


def refined_frames(
    lm: VideoLM,
    requests: Sequence[Request],
    codes: Tensor,
    num_frames: int,
    *,
    mode: Mode,
    fps: float | None,
    seed: int,
    batch_size: int,
    way: Way,
) -> list[Tensor]:
    """Frames ``[1,3,T,H,W]`` in [-1, 1] of finished videos, one a request, on the CPU; ``codes`` ``[N,K,t,h,w]``."""
    head = head_of(lm)
    grid = Grid(t=codes.shape[2], h=codes.shape[3], w=codes.shape[4])
    header = VideoHeader(grid=grid, mode=mode, fps=fps)
    frames: list[Tensor] = []
    for start in range(0, len(codes), batch_size):
        part, chunk = codes[start : start + batch_size], requests[start : start + batch_size]
        documents = [
            finished(lm, request.segments, of_one, header) for request, of_one in zip(chunk, part, strict=True)
        ]
        samples = torch.arange(start, start + len(part))
        with sampling_from(lm.model, way.autocast):
            given = conditions(lm, documents, part)
        with torch.inference_mode():  # not in autocast: what it rounds a head should not have to put back
            latents = refined_latents(head, given, samples, seed=seed, refinement=lm.refinement)
            decoded = lm.codec.decode_latents(latents.to(codec_device(lm.codec)), num_frames=num_frames)
        frames.extend(decoded.clamp(-1.0, 1.0).cpu().split(1))
    return frames
