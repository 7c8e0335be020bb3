"""How good a video language model is: its loss on held-out clips, and the clips it draws, for whoever judges them.

Nothing here trains, and nothing here knows a recipe or an oracle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.data.clip_source import spread
from tokvid.errors import ModelError, ShapeError
from tokvid.frames import to_pictures
from tokvid.runtime import evaluation_mode
from tokvid_lm.batch_plan import Batch
from tokvid_lm.chat_documents import ChatDocuments
from tokvid_lm.code_source import CodeSource
from tokvid_lm.collate import Collator
from tokvid_lm.documents import Documents
from tokvid_lm.latent_documents import open_documents
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.segments import TextSegment, VideoSegment
from tokvid_lm.video_lm import VideoLM
from tokvid_lm.vocabulary import MODES

_MOST_COUNTED = 16_384
_TALK = MixtureConfig(objective="chat")


@dataclass(frozen=True, kw_only=True)
class CodeLosses:
    """Nats a label of the model on held-out clips, and of guessing codes from how common each is in training.

    Of a continuous model the latter is None, and videos have squared errors of a velocity in place of nats.

    ``validation`` is by what is asked for: codes by mode (``next_token``, ``maskgit``, ``frame``), the ids of a
    ``caption`` after its video, of ``text`` alone, and of what is said in a ``chat``.
    """

    validation: Mapping[str, float]
    unigram_entropy: float | None

    @property
    def share_below_unigram(self) -> float:
        """How far codes by the first mode are below guessing, in (-inf, 1]: 0 is no better, 1 knows every code."""
        if not self.unigram_entropy:
            return 0.0
        codes = next((nats for name, nats in self.validation.items() if name in MODES), self.unigram_entropy)
        return 1.0 - codes / self.unigram_entropy

    def figures(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        if self.unigram_entropy is None:
            flow = {name: loss for name, loss in self.validation.items() if name in MODES}
            nats = {name: loss for name, loss in self.validation.items() if name not in MODES}
            return {"validation_flow": flow} | ({"validation_nats": nats} if nats else {})
        figures: dict[str, Any] = {
            "validation_nats": dict(self.validation),
            "unigram_nats_per_code": self.unigram_entropy,
        }
        if any(name in MODES for name in self.validation):
            figures["share_below_unigram"] = self.share_below_unigram
        return figures


@torch.no_grad()
def validation_losses(
    lm: VideoLM,
    clips: CodeSource,
    mixture: Sequence[MixtureConfig],
    *,
    dialogues: ChatDocuments | None = None,
    answer: Callable[..., Any] | None = None,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Mean nats a label over all clips, captions given, in evaluation mode: of codes by mode, and of captions.

    Every mode of the ``mixture`` is measured on its own, from text alone; of the masked ones with masked shares drawn
    from their schedule, the same each time. Of ``dialogues`` the words of the assistant are measured, and that it
    shows a video; passages of a text are left out: nothing of it is held out.
    ``answer`` is what answers a batch with its loss: in training the model itself, whose forward is the objective.
    """
    if answer is None:
        answer = VideoObjective(lm.model, lm.vocabulary, latent_head=lm.latent_head)
    found: dict[str, float] = {}
    for entry in mixture:
        if entry.objective in found or entry.file:
            continue
        if entry.objective == "chat":
            if dialogues is None:
                raise ModelError("the objective chat is measured on dialogues: give some")
            documents = Documents(lm.processor, clips, mixture=(_TALK,), shuffle=False, dialogues=dialogues)
            count = len(dialogues)
            found["chat"] = _mean_nats(lm, documents, answer, batch_size, autocast, count=count, text_alone=True)
        else:
            alone = MixtureConfig(objective=entry.objective, schedule=entry.schedule)
            documents = open_documents(lm.processor, clips, mixture=(alone,), shuffle=False)
            found[entry.objective] = _mean_nats(lm, documents, answer, batch_size, autocast, count=len(documents))
    return found


def _mean_nats(
    lm: VideoLM,
    documents: Documents,
    answer: Callable[..., Any],
    batch_size: int,
    autocast: torch.dtype | None,
    *,
    count: int,
    text_alone: bool = False,
) -> float:
    """Of the first ``count`` documents."""
    device = lm.model.device
    collator = Collator(documents, pad_id=lm.pad_id, positions=lm.positions)
    nats, labels = 0.0, 0.0
    kinds = slice(0, 1) if text_alone else slice(None)
    with evaluation_mode(lm.model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # a diffusion head draws noise, the same each time
        for start in range(0, count, batch_size):
            numbers = range(start, min(start + batch_size, count))
            batch = collator([Batch(rows=tuple((number,) for number in numbers))])
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                parts = answer(**{name: tensor.to(device) for name, tensor in batch.items()})
            nats += float(parts["nats"][kinds].sum())
            labels += float(parts["count"][kinds].sum())
    return nats / labels


@torch.no_grad()
def text_perplexity(
    model: PreTrainedModel, ids: Sequence[int], *, text_size: int, start: Sequence[int] = (), passage: int = 512
) -> float:
    """Perplexity of ``ids`` in passages of so many, after the ``start`` ids; all of them are asked for but the first.

    Of any causal language model, among its first ``text_size`` columns: what it was before it was extended and what it
    is now can be compared. The remainder that fills no passage is left out; raises :class:`ShapeError` if that is all.
    """
    pieces = [ids[begin : begin + passage] for begin in range(0, len(ids) - passage + 1, passage)]
    if not pieces or passage < 2:
        raise ShapeError(f"perplexity needs a passage of {max(2, passage)} ids, got a text of {len(ids)}")
    nats, count = 0.0, 0
    with evaluation_mode(model):
        for piece in pieces:
            row = torch.tensor([*start, *piece], device=model.device)[None]
            asked = row[0, max(1, len(start)) :]
            logits = model(input_ids=row).logits[0, -len(asked) - 1 : -1, :text_size].float()
            nats += float(F.cross_entropy(logits, asked, reduction="sum"))
            count += len(asked)
    return math.exp(nats / count)


def unigram_entropy(clips: CodeSource) -> float:
    """Entropy in nats of how common each code is, mean over the K codebooks; of clips spread over all of them."""
    counts: Tensor | None = None
    for number in spread(len(clips), _MOST_COUNTED):
        codes = clips.codes_of(number).flatten(1)
        found = torch.stack([torch.bincount(row, minlength=clips.codebook_size) for row in codes])
        counts = found if counts is None else counts + found
    assert counts is not None, "a source has clips"
    share = counts.double() / counts.sum(1, keepdim=True)
    return float(-torch.special.xlogy(share, share).sum(1).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnClips:
    """Clips uint8 ``[N,T,H,W,3]`` drawn from ``captions``, and the seconds it took."""

    captions: tuple[str, ...]
    frames: npt.NDArray[np.uint8]
    seconds: float


def draw_clips(
    lm: VideoLM,
    captions: Sequence[str],
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    mode: str | None = None,
    candidates: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DrawnClips:
    """Draw one clip from each caption as the model's settings say; sample n has the noise of (seed, n).

    What is None of the size is that of the clips that the model was trained on.
    """
    start = time.perf_counter()
    segments = lm.generate(
        [[TextSegment(caption)] for caption in captions],
        mode=mode,
        candidates=candidates,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        seed=seed,
        batch_size=batch_size,
        autocast=autocast,
        progress=progress,
    )
    frames = [segment.frames for segment in segments if isinstance(segment, VideoSegment)]
    pictures = np.concatenate([to_pictures(frame) for frame in frames if frame is not None])
    return DrawnClips(captions=tuple(captions), frames=pictures, seconds=time.perf_counter() - start)
