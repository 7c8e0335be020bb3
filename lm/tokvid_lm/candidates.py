"""Of several clips drawn from one caption the one that shows it best, as the model itself reads them.

The model that writes captions says how likely the caption is after each clip, and the clip after which it is likeliest
stays: CogView's self-reranking (Ding et al. 2021, arXiv 2105.13290), where DALL-E asks another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokvid.errors import ModelError
from tokvid_lm.document import IGNORED, Document, DocumentWriter
from tokvid_lm.objectives.cross_entropy import head_cross_entropy
from tokvid_lm.reading import read_documents
from tokvid_lm.samplers.runner import Way, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, TextSegment, VideoSegment

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM


def check_judges(lm: VideoLM, prompts: Sequence[Sequence[Segment]] = ()) -> None:
    """Raise :class:`ModelError` unless the model learned to write captions, which is how it judges, and ``prompts`` are
    text alone."""
    if not lm.settings.captions:
        raise ModelError(
            "candidates are judged by how likely the model finds their caption, and this model was not trained to"
            " caption: use candidates 1"
        )
    for number, prompt in enumerate(prompts, start=1):
        if not caption_ids(lm, prompt):
            raise ModelError(
                f"candidates are judged by their caption, and prompt {number} of {len(prompts)} is empty or not text"
                " alone: use candidates 1"
            )


def only_one(sampling: Sampling, **changed: Any) -> Sampling:
    """``sampling`` with what is ``changed`` of it, for a video that is shown as it is drawn: there is no choosing."""
    wanted = changed.pop("candidates", None)
    if wanted not in (None, 1):
        raise ModelError(f"a video that is shown as it is drawn is the only candidate, got candidates {wanted}")
    return sampling.override(candidates=1, **changed)


def caption_ids(lm: VideoLM, prompt: Sequence[Segment]) -> list[int]:
    """The ids of the text of a prompt that is nothing but text; none of any other, by which no clip can be judged."""
    texts = [segment.text for segment in prompt if isinstance(segment, TextSegment)]
    if len(texts) < len(prompt) or not "".join(texts).strip():
        return []
    return [token for text in texts for token in lm.processor.encode_text(text)]


def caption_nats(
    lm: VideoLM, clips: Sequence[VideoSegment], captions: Sequence[Sequence[int]], *, batch_size: int, way: Way
) -> Tensor:
    """Nats float32 ``[N]`` of the ids of each caption, and of its end, after its clip: the less, the likelier.

    Text alone competes, as in :func:`~tokvid_lm.generation.draw_text`.
    """
    documents = [_captioned(lm, clip, caption) for clip, caption in zip(clips, captions, strict=True)]
    columns = max(lm.vocabulary.text_size, *(end + 1 for end in lm.processor.end_ids()), 0)
    nats: list[Tensor] = []
    for start in range(0, len(documents), batch_size):
        part = documents[start : start + batch_size]
        with sampling_from(lm.model, way.autocast):
            by = lm.model if lm.head is None else lm.model.base_model
            batch, read = read_documents(lm, part, by=by)
            row, place = (batch["labels"] != IGNORED).nonzero(as_tuple=True)
            asked = batch["labels"][row, place]
            if lm.head is None:
                each = F.cross_entropy(read.logits[row, place, :columns].float(), asked, reduction="none")
            else:
                hidden, weights = read.last_hidden_state[row, place], torch.ones(len(row), device=row.device)
                _, each = head_cross_entropy(hidden, lm.head, asked, weights, columns=(0, columns))
        nats.append(torch.zeros(len(part), device=row.device).index_add(0, row, each.float()).cpu())
    return torch.cat(nats)


def likeliest(nats: Tensor, tries: Sequence[int]) -> list[int]:
    """Of each run of ``tries`` neighbours among ``nats`` ``[sum(tries)]`` the number of the least."""
    chosen, start = [], 0
    for tried in tries:
        chosen.append(start + int(nats[start : start + tried].argmin()))
        start += tried
    return chosen


def _captioned(lm: VideoLM, clip: VideoSegment, caption: Sequence[int]) -> Document:
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write(writer, [clip])
    writer.text(caption, scored=True)
    writer.text(lm.processor.end_ids(), scored=True)
    return writer.finish()
