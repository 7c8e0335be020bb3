"""From prompts to the codes of videos, in any mode, and to text: what is fed, what is wanted, in which batches.

It knows segments and samplers, no folder and no user's defaults; :class:`~tokvid_lm.video_lm.VideoLM` has those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm.candidates import caption_ids, caption_nats, likeliest
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.documents import needs_prefix
from tokvid_lm.grammar import Grammar
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.masked import sample_at_once, sample_by_frame
from tokvid_lm.samplers.next_token import sample_codes, sample_text
from tokvid_lm.samplers.runner import PLAIN, Runner, Way, check_context, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, TextSegment, VideoSegment
from tokvid_lm.templates import VideoHeader

if TYPE_CHECKING:
    from tokvid_lm.video_lm import VideoLM

Prompts = Sequence[Segment] | Sequence[Sequence[Segment]]
SAMPLERS = {"next_token": sample_codes, "maskgit": sample_at_once, "frame": sample_by_frame}
"""What draws the codes of videos, by mode."""
_APART = 2**40
"""Between the noise of two candidates of a sample: more samples than anybody draws at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What is known of a video to come: ``codes`` ``[1,K,t,h,w]``, ``known`` bool ``[t,h,w]``; ``actions``
    ``[T-1]``; ``num_frames``, its exact T."""

    codes: Tensor | None = None
    known: Tensor | None = None
    num_frames: int | None = None
    actions: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A video to draw: the segments before it, and what is given of it."""

    segments: Sequence[Segment]
    given: Given

    @property
    def caption(self) -> str | None:
        """The text of the prompt."""
        texts = [segment.text for segment in self.segments if isinstance(segment, TextSegment)]
        return " ".join(texts) if texts else None


def check_unused(settings: dict[str, object], purpose: str) -> None:
    """Raise :class:`ModelError` naming the ``settings`` that are given and have no use."""
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ModelError(
            f"{', '.join(given)} cannot be used {purpose}: leave {'it' if len(given) == 1 else 'them'} out"
        )


def as_batch(prompts: Prompts) -> list[list[Segment]]:
    """A list of prompts, of one or of several; raises :class:`ModelError` for what is neither."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence) or not prompts:
        raise ModelError(
            f"prompts is a list of segments or a list of such lists, got {prompts!r}; write [TextSegment('...')]"
        )
    if all(isinstance(piece, TextSegment | VideoSegment) for piece in prompts):
        return [list(prompts)]  # type: ignore[arg-type]
    batch: list[list[Segment]] = []
    for prompt in prompts:
        if not isinstance(prompt, list | tuple):
            raise ModelError(f"prompts mixes lists and {type(prompt).__name__}; write one list of segments per prompt")
        batch.append(list(prompt))
    return batch


def split_request(segments: Sequence[Segment], lm: VideoLM) -> Request:
    """A prompt whose last segment is a video with unknown cells asks for that video; any other for a new one."""
    last = segments[-1] if segments else None
    if isinstance(last, VideoSegment) and last.known is not None and not bool(last.known.all()):
        if lm.is_continuous:
            raise ModelError("a continuous model draws videos from text alone: give no known cells")
        codes = lm.processor.codes_of(last)
        if last.known.shape != codes.shape[2:]:
            raise ShapeError(
                f"known must be bool {list(codes.shape[2:])} for these codes, one value a cell, got"
                f" {list(last.known.shape)}"
            )
        frames = last.num_frames if last.frames is None else last.frames.shape[2]
        given = Given(codes=codes, known=last.known.cpu(), num_frames=frames, actions=last.actions)
        return Request(segments=segments[:-1], given=given)
    return Request(segments=segments, given=Given())


def draw_codes(
    lm: VideoLM,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    num_frames: int,
    *,
    fps: float | None,
    copies: int,
    batch_size: int,
    way: Way,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Codes ``[requests*copies,K,t,h,w]``, the copies of a request one after the other.

    Of the candidates of a row the first is what would be drawn were it the only one; each next one has the noise of a
    sample that is ``_APART`` further on. Without a caption to judge them by there is one.
    """
    wanted = [request for request in requests for _ in range(copies)]
    captions = [caption_ids(lm, request.segments) if sampling.candidates > 1 else [] for request in wanted]
    tries = [sampling.candidates if caption else 1 for caption in captions]
    rows = [number for number, tried in enumerate(tries) for _ in range(tried)]
    noise = torch.tensor([number + nth * _APART for number, tried in enumerate(tries) for nth in range(tried)])
    parts: list[Tensor] = []
    for start in range(0, len(rows), batch_size):
        chunk = [wanted[number] for number in rows[start : start + batch_size]]
        samples = noise[start : start + batch_size]
        for _, ids in stream_ids(lm, chunk, sampling, grid, num_frames, fps=fps, samples=samples, way=way):
            last = ids
        parts.append(lm.processor.decode_codes(last, grid))
        if progress is not None:
            progress(start + len(chunk), len(rows))
    codes = torch.cat(parts)
    nats = torch.zeros(len(rows))
    judged = [row for row, number in enumerate(rows) if tries[number] > 1]
    if judged:
        clips = [
            VideoSegment(
                codes=codes[row : row + 1], num_frames=num_frames, fps=fps, actions=wanted[rows[row]].given.actions
            )
            for row in judged
        ]
        texts = [captions[rows[row]] for row in judged]
        nats[judged] = caption_nats(lm, clips, texts, batch_size=batch_size, way=way)
    return codes[likeliest(nats, tries)]


def draw_text(
    lm: VideoLM,
    batch: Sequence[Sequence[Segment]],
    sampling: Sampling,
    *,
    copies: int,
    max_new_tokens: int,
    batch_size: int,
    way: Way,
) -> list[TextSegment]:
    """The text that follows each prompt, at most ``max_new_tokens`` ids, the copies one after the other."""
    if sampling.guided:
        raise ModelError("guidance_scale is for video; leave it at 1.0 to generate text")
    ends = end_ids(lm.model, lm.tokenizer)
    allowed = Grammar.text(lm.vocabulary, ends).masks[0, : max(lm.vocabulary.text_size, *ends, 0) + 1]
    prompts = [document for segments in batch for document in [lm.document(segments)] * copies]
    check_context(lm.model, max(map(len, prompts)) + max_new_tokens - 1)
    answers: list[TextSegment] = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        samples = torch.arange(start, start + len(chunk))
        with sampling_from(lm.model, way.autocast):
            runner = Runner(lm.model, lm.head, chunk, max_new_tokens, positions=lm.positions, way=way)
            drawn = list(sample_text(runner, allowed, ends, sampling, samples, max_new_tokens=max_new_tokens))
        answers.extend(TextSegment(lm.processor.decode_text(row)) for row in torch.stack(drawn, dim=1).tolist())
    return answers


def stream_ids(
    lm: VideoLM,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    num_frames: int,
    *,
    fps: float | None,
    samples: Tensor,
    way: Way = PLAIN,
) -> Iterator[tuple[int, Tensor]]:
    """``(latent frame, ids of codes [rows,S])`` after each finished latent frame of one batch."""
    canvas, prompts = opened(lm, requests, sampling, grid, num_frames, fps=fps)
    with sampling_from(lm.model, way.autocast):
        runner = Runner(lm.model, lm.head, prompts, len(canvas), positions=lm.positions, way=way)
        for frame, ids in SAMPLERS[sampling.mode](runner, canvas, lm.vocabulary, sampling, samples):
            yield frame, ids[:, canvas.is_code]


def opened(
    lm: VideoLM,
    requests: Sequence[Request],
    sampling: Sampling,
    grid: Grid,
    num_frames: int,
    *,
    fps: float | None,
) -> tuple[Canvas, list[Document]]:
    """The canvas of the videos of ``requests``, and what is read before each; with guidance of its null twin, too."""
    header = VideoHeader(
        grid=grid, mode=sampling.mode, fps=fps, actions=lm.codec.temporal_stride if lm.vocabulary.num_actions else 0
    )
    canvas = _canvas(lm, requests, header, num_frames)
    prompts = [_prompt(lm, request, header, canvas.rows(slice(row, row + 1))) for row, request in enumerate(requests)]
    if sampling.guided:
        lm.check_guidance()
        nulls = [
            Request(segments=[], given=Given() if sampling.guides_known else request.given) for request in requests
        ]
        prompts += [_prompt(lm, null, header, canvas.rows(slice(row, row + 1))) for row, null in enumerate(nulls)]
    # The end of the video is never fed here, but whoever goes on with the document will feed it.
    check_context(lm.model, max(map(len, prompts)) + len(canvas) + 1)
    return canvas, prompts


def _canvas(lm: VideoLM, requests: Sequence[Request], header: VideoHeader, num_frames: int) -> Canvas:
    """One row a request, with what is given of it."""
    grid, rows = header.grid, len(requests)
    codes = torch.zeros(rows, lm.vocabulary.num_codebooks, grid.t, grid.h, grid.w, dtype=torch.int64)
    known = torch.zeros(rows, grid.t, grid.h, grid.w, dtype=torch.bool)
    actions = torch.zeros(rows, (grid.t - 1) * header.actions, dtype=torch.int64)
    for row, request in enumerate(requests):
        given = request.given
        if given.codes is not None and given.known is not None:
            if given.codes.shape[2:] != known.shape[1:]:
                raise ShapeError(
                    f"the video that is given has a grid of {list(given.codes.shape[2:])}, the one asked for {grid}"
                )
            codes[row], known[row] = given.codes[0], given.known
        if header.actions:
            if given.actions is None:
                raise ModelError("this model draws videos from actions: give actions, int64 [T-1]")
            actions[row] = lm.processor.action_ids(given.actions, grid, num_frames)
        elif given.actions is not None:
            raise ModelError("this model knows no actions; extend one with num_actions to train it on them")
    return Canvas.build(
        lm.template,
        lm.layout,
        header,
        rows,
        known_ids=lm.vocabulary.codes_to_ids(codes),
        known=known,
        action_ids=actions,
    )


def _prompt(lm: VideoLM, request: Request, header: VideoHeader, canvas: Canvas) -> Document:
    """The document up to the first place of the canvas (of one row)."""
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write(writer, request.segments)
    known, frame = ~canvas.wanted[0][canvas.is_code], canvas.frame[canvas.is_code]
    if request.given.known is not None and needs_prefix(known.numpy(), frame.numpy(), header.mode):
        writer.known(canvas.code_ids[0].numpy(), known.numpy(), header.grid)
    writer.header(header)
    return writer.finish()


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the text tokenizer's eos and those of the model's generation settings."""
    settings = getattr(model.generation_config, "eos_token_id", None)
    ids = [] if settings is None else list(settings) if isinstance(settings, list | tuple) else [settings]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return sorted({int(token) for token in ids})
