"""Finished documents, read once more as a whole: what the model makes of every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokvid_lm.collate import collate
from tokvid_lm.document import Document
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.samplers.runner import check_context

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM


@torch.no_grad()
def read_documents(lm: VideoLM, documents: Sequence[Document], *, by: nn.Module) -> tuple[dict[str, Tensor], Any]:
    """The columns of ``documents``, one a row (:func:`~tokvid_lm.collate.collate`), on the model's device, and what
    ``by``, ``lm.model`` or its body, makes of them.

    Raises :class:`ModelError` for documents beyond the model's context.
    """
    check_context(lm.model, max(map(len, documents)))
    columns = collate([[document] for document in documents], pad_id=lm.pad_id, positions=lm.positions)
    batch = {name: column.to(lm.model.device) for name, column in columns.items()}
    spec = MaskSpec(document=batch["document"], order=batch["order"], block=batch["block"], ghost=batch["ghost"])
    inputs = mask_for(lm.model, spec, batch["position_ids"])
    return batch, by(input_ids=batch["input_ids"], use_cache=False, **inputs)
