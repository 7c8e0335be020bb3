"""Of several clips drawn from one caption the one that shows it best, as the model itself reads them.

The model that writes captions says how likely the caption is after each clip, and the clip after which it is likeliest
stays: CogView's self-reranking (Ding et al. 2021, section 3.3), where DALL-E asks another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokvid.errors import ModelError
from tokvid_lm.samplers.next_token import text_place
from tokvid_lm.samplers.runner import Runner, Way, check_context, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import VideoSegment

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM


def check_judges(lm: VideoLM) -> None:
    """Raise :class:`ModelError` unless the model learned to write captions, which is how it judges."""
    if not lm.settings.captions:
        raise ModelError(
            "candidates are judged by how likely the model finds their caption, and this model was not trained to"
            " caption: use candidates 1"
        )


def only_one(sampling: Sampling, **changed: Any) -> Sampling:
    """``sampling`` with what is ``changed`` of it, for a video that is shown as it is drawn: there is no choosing."""
    if changed.pop("candidates", None) not in (None, 1):
        raise ModelError("a video that is shown as it is drawn is the only candidate: leave candidates out")
    return sampling.override(candidates=1, **changed)


def caption_nats(
    lm: VideoLM,
    clips: Sequence[VideoSegment],
    captions: Sequence[str],
    *,
    batch_size: int = 64,
    way: Way | None = None,
) -> Tensor:
    """Nats float32 ``[N]`` of each caption, to its end, after its clip: the less, the likelier."""
    way = Way() if way is None else replace(way, compiled=False)
    ends = lm.processor.end_ids()
    texts = [torch.tensor([*lm.processor.encode_text(caption), *ends]) for caption in captions]
    columns = max(lm.vocabulary.text_size, *(end + 1 for end in ends), 0)
    nats: list[Tensor] = []
    for start in range(0, len(clips), batch_size):
        prompts = [lm.document([clip]) for clip in clips[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(texts[start : start + batch_size], batch_first=True, padding_value=-1)
        asked, ids = ids >= 0, ids.clamp(min=0)
        room = ids.shape[1]
        check_context(lm.model, max(map(len, prompts)) + room - 1)
        with sampling_from(lm.model, way.autocast):
            runner = Runner(lm.model, lm.head, prompts, room, positions=lm.positions, way=way)
            features = runner.prefill()
            if room > 1:
                # The padding behind a shorter caption is seen by nothing that counts.
                places = runner.place_ids(text_place(runner.lengths[:, None] + torch.arange(room - 1)))
                features = torch.cat([features, runner.feed(ids[:, :-1], places)], dim=1)
            likely = runner.logits(features, 0, columns).log_softmax(-1).cpu()
        nats.append(-(likely.gather(-1, ids[..., None])[..., 0] * asked).sum(1))
    return torch.cat(nats)


def likeliest(
    lm: VideoLM,
    clips: Sequence[VideoSegment],
    captions: Sequence[str],
    tries: Sequence[int],
    *,
    batch_size: int,
    way: Way,
) -> Tensor:
    """Which of the ``clips`` stay, int64 ``[len(tries)]``: of each run of ``tries`` the one that fits its caption."""
    nats = caption_nats(lm, clips, captions, batch_size=batch_size, way=way)
    runs = nats.split(list(tries))
    starts = [sum(tries[:run]) for run in range(len(tries))]
    return torch.tensor([start + int(run.argmin()) for start, run in zip(starts, runs, strict=True)])
