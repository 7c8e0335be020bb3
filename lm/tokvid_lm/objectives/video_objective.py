"""The loss of a batch of documents, whatever their modes: every label is asked of its hidden state, over its columns.

A code competes with the codes of its slot, text with text and special ids; a latent is asked of a diffusion head. Masks
and positions come with the batch; where the labels stand is the business of :mod:`tokvid_lm.document`. This knows no
schedule and no Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tokvid.config_checks import at_least, finite, is_share
from tokvid.errors import ModelError
from tokvid_lm.continuous import LatentHead
from tokvid_lm.document import IGNORED, TEXT
from tokvid_lm.head import plain_head
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.objectives.cross_entropy import head_cross_entropy
from tokvid_lm.vocabulary import MODES, Mode, VideoVocabulary


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the parts of the loss count.

    A text label counts ``text_weight`` against a code. The codes of the first ``early_frames`` latent frames count
    ``early_weight``: what comes later is easier, and its many labels would drown them (Loong, Wang et al. 2024, arXiv
    2410.02757). ``label_smoothing`` is for masked codes. ``z_loss`` (1e-4, say) keeps logits from drifting. With
    ``sliced`` off all columns of the head compete for every label, which a model needs that is to write video without
    a grammar.
    """

    text_weight: float = 1.0
    early_frames: int = 1
    early_weight: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sliced: bool = True

    def __post_init__(self) -> None:
        at_least(self, 0, "text_weight", "early_frames", "early_weight", "z_loss")
        finite(self, "text_weight", "early_weight", "z_loss")
        is_share(self, "label_smoothing")


class VideoObjective:
    """Called with a batch it answers with its loss, and with what the log says of text and of codes by mode and frame.

    ``mode_weights`` (default 1 each) is what a code counts by the mode of its video. ``max_frames`` is how many
    latent frames the log tells apart; later ones count with the last. A model whose logits are more than its head
    (soft capping, say) is asked for all its logits instead. With a ``latent_head`` videos are latents: a label of one
    is asked of this head, and what counts as its nats is the squared error of the velocity.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: VideoVocabulary,
        loss: LossConfig | None = None,
        *,
        mode_weights: dict[Mode, float] | None = None,
        max_frames: int = 32,
        latent_head: LatentHead | None = None,
    ) -> None:
        self.model = model
        self.latent_head = latent_head
        self.loss = loss or LossConfig()
        self.max_frames = max_frames
        self.head = plain_head(model)
        if latent_head is not None and self.head is None:
            raise ModelError(
                f"{type(model).__name__} makes its logits otherwise than by a linear head, and latents are drawn from"
                " the hidden states before one: take another language model"
            )
        weights = {mode: (mode_weights or {}).get(mode, 1.0) for mode in MODES}
        self._mode_weights = torch.tensor([weights[mode] for mode in MODES])
        starts = [vocabulary.slot_range(slot).start for slot in range(vocabulary.slots)]
        # Text and special ids first, then slot after slot.
        self._edges = [0, *starts, vocabulary.total_size]
        self._code_offset = vocabulary.code_offset
        self._digits = max(1, len(vocabulary.factors))
        self._logits_of = model.forward

    def __call__(
        self,
        input_ids: Tensor,
        labels: Tensor,
        frame: Tensor,
        mode: Tensor,
        position_ids: Tensor,
        document: Tensor,
        order: Tensor,
        block: Tensor,
        ghost: Tensor,
        latents: Tensor | None = None,
        num_items: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """``loss``: the weighted sum over labels by ``num_items`` (default: their number in this batch).

        All int64 ``[B,S]`` but ``position_ids`` (``[B,S]`` or ``[3,B,S]``), ``ghost`` (bool) and ``latents``
        ``[B,S,C]``: the columns of :class:`~tokvid_lm.document.Document`, packed. Also ``nats`` and ``count``, float64
        ``[1 + modes*max_frames]``: the plain cross-entropies and their number, of text and then of codes by mode and
        latent frame; each digit of a code is a part of one.
        """
        scored = (labels != IGNORED).flatten().nonzero().squeeze(1)
        targets = labels.flatten()[scored]
        frames, modes = frame.flatten()[scored], mode.flatten()[scored]
        number = torch.as_tensor(len(targets) if num_items is None else num_items, device=targets.device)
        weights = self._weights(frames, modes) / number.clamp_min(1)
        spec = MaskSpec(document=document, order=order, block=block, ghost=ghost)
        inputs = {**self._read(input_ids, latents), "use_cache": False, **mask_for(self.model, spec, position_ids)}
        drawn = None if latents is None else latents.flatten(0, 1)[scored]
        loss, nats = self._losses(inputs, scored, targets, weights, modes, drawn)
        bins = torch.where(frames == TEXT, 0, 1 + modes * self.max_frames + frames.clamp(max=self.max_frames - 1))
        size = 1 + len(MODES) * self.max_frames
        return {
            "loss": loss,
            "nats": torch.bincount(bins, nats.double(), minlength=size),
            "count": torch.bincount(bins, minlength=size).double() / self._divisor(size),
        }

    def _read(self, input_ids: Tensor, latents: Tensor | None) -> dict[str, Tensor]:
        """What the model reads."""
        if self.latent_head is None:
            return {"input_ids": input_ids}
        assert latents is not None, "a batch of a continuous model has latents"
        embeddings = self.model.get_input_embeddings()(input_ids)
        return {"inputs_embeds": self.latent_head.read(embeddings, latents, input_ids == self._code_offset)}

    def _divisor(self, size: int) -> Tensor:
        """What the number of labels of each kind is divided by: a text id counts, and a digit as a part of a code."""
        divisor = torch.full((size,), float(self._digits), dtype=torch.float64, device=self.model.device)
        divisor[0] = 1.0
        return divisor

    def _weights(self, frames: Tensor, modes: Tensor) -> Tensor:
        early = torch.where(frames < self.loss.early_frames, self.loss.early_weight, 1.0)
        codes = early * self._mode_weights.to(frames.device)[modes]
        return torch.where(frames == TEXT, self.loss.text_weight, codes)

    def _losses(
        self,
        inputs: dict[str, Any],
        scored: Tensor,
        targets: Tensor,
        weights: Tensor,
        modes: Tensor,
        latents: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the plain cross-entropies (of latents the squared errors) ``[n]``."""
        if self.head is None:
            logits = self._logits_of(**inputs).logits.flatten(0, 1).index_select(0, scored).float()
            return self._plain_losses(logits, targets, weights, modes)
        hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        nats = torch.empty(len(targets), device=targets.device)
        loss = hidden.new_zeros((), dtype=torch.float32) + 0.0 * hidden[:0].sum()
        if self.latent_head is not None:
            # Every pass reaches all weights, whatever it asks for: ZeRO counts on that.
            loss = loss + sum(part.flatten()[:0].sum() for part in (self.head.weight, *self.latent_head.parameters()))
        for part, columns, smoothing in self._parts(targets, modes):
            rows = hidden.index_select(0, scored[part])
            if latents is not None and self.latent_head is not None and columns[0] >= self._code_offset:
                errors = self.latent_head.token_losses(latents[part], rows)
                loss = loss + (errors * weights[part]).sum()
                nats[part] = errors.detach()
                continue
            part_loss, part_nats = head_cross_entropy(
                rows,
                self.head,
                targets[part],
                weights[part],
                columns=columns,
                label_smoothing=smoothing,
                z_loss=self.loss.z_loss,
            )
            loss = loss + part_loss
            nats[part] = part_nats
        return loss, nats

    def _plain_losses(self, logits: Tensor, targets: Tensor, weights: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
        """The same of logits ``[n, all]`` that the model has made itself."""
        nats = torch.empty(len(targets), device=targets.device)
        loss = logits.new_zeros(())
        for part, (low, high), smoothing in self._parts(targets, modes):
            rows, wanted = logits[part, low:high], targets[part] - low
            each = F.cross_entropy(rows, wanted, reduction="none", label_smoothing=smoothing)
            each = each + self.loss.z_loss * rows.logsumexp(1).square()
            loss = loss + (each * weights[part]).sum()
            nats[part] = F.cross_entropy(rows.detach(), wanted, reduction="none")
        return loss, nats

    def _parts(self, targets: Tensor, modes: Tensor) -> Iterator[tuple[Tensor, tuple[int, int], float]]:
        """The rows that share their columns and their smoothing: their numbers, the columns, the smoothing."""
        smoothing = self.loss.label_smoothing
        masked = (
            (modes > 0) & (targets >= self._code_offset) if smoothing else torch.zeros_like(targets, dtype=torch.bool)
        )
        edges = torch.tensor(self._edges[1:-1], device=targets.device)
        group = torch.bucketize(targets, edges, right=True) if self.loss.sliced else torch.zeros_like(targets)
        key = group * 2 + masked
        for value in key.unique().tolist():
            part = (key == value).nonzero().squeeze(1)
            columns = tuple(self._edges[value // 2 : value // 2 + 2]) if self.loss.sliced else (0, self._edges[-1])
            yield part, (columns[0], columns[1]), smoothing if value % 2 else 0.0

    @contextmanager
    def as_forward(self) -> Iterator[None]:
        """Inside, calling the model is calling this: what wraps a model (DDP, DeepSpeed) wraps the loss too."""
        self.model.forward = self
        try:
            yield
        finally:
            # Accelerate may have put its own wrapper there; the class has the plain one.
            self.model.__dict__.pop("forward", None)
            self.model.__dict__.pop("_original_forward", None)
