"""Captioned clips as documents: what a sample of a run shows, how long it is, and how it is written.

Nothing here knows a language model, batches or steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokvid.errors import DataError
from tokvid.grid import Grid
from tokvid_lm.chat_documents import ChatDocuments
from tokvid_lm.code_source import CodeSource
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.mixture import Mixture, MixtureConfig, hide
from tokvid_lm.passages import Passages
from tokvid_lm.processor import VideoProcessor
from tokvid_lm.tasks import known_cells
from tokvid_lm.templates import VideoHeader
from tokvid_lm.templates.base import Template

_MIXTURE = (MixtureConfig(),)
# Tasks whose known cells may lie beyond what the unknown ones see, and are then said before the video, too.
_PREFIXED = ("interpolation", "inpainting", "outpainting")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What a sample shows: which clip, in which share of the mixture, under which header, after which caption (or
    passage of a text).

    ``known`` bool and ``frame`` int64 ``[S]``: of each place of the sequence of codes.
    """

    clip: int
    entry: MixtureConfig
    header: VideoHeader
    caption: npt.NDArray[np.int32]
    known: npt.NDArray[np.bool_]
    frame: npt.NDArray[np.int64]

    @property
    def prefixed(self) -> bool:
        """Whether known cells are said before the video, too."""
        return self.entry.draws_video and needs_prefix(self.known, self.frame, self.header.mode)


class Documents:
    """Sample number n of a run as a :class:`~tokvid_lm.document.Document`; every turn through the clips is a new order.

    The clips are cut into ``parts``, stretches of as many clips each, and sample n shows one of part ``n % parts``.
    ``mixture`` says what is learned from the clips. ``prompt_drop`` of the documents lose their caption, which guidance
    needs. With ``score_text`` captions and the end of a document are asked for too. With ``shuffle`` off sample n shows
    clip n. ``dialogues`` are for the shares of the objective ``chat``; they are seen whole, whatever is seen of clips.
    """

    def __init__(
        self,
        processor: VideoProcessor,
        clips: CodeSource,
        *,
        mixture: Sequence[MixtureConfig] = _MIXTURE,
        prompt_drop: float = 0.0,
        score_text: bool = False,
        seed: int = 0,
        shuffle: bool = True,
        parts: int = 1,
        dialogues: ChatDocuments | None = None,
    ) -> None:
        self.parts = parts
        self.dialogues = dialogues
        self.processor = processor
        self.clips = clips
        self.mixture = Mixture(mixture, seed=seed)
        self.prompt_drop = prompt_drop
        self.score_text = score_text
        self.seed = seed
        self.shuffle = shuffle
        texts = [processor.encode_text(caption) for caption in clips.captions]
        # End to end: a list of lists of numbers would take ten times the memory.
        self._captions = np.array([token for text in texts for token in text], np.int32)
        self._bounds = np.cumsum([0, *map(len, texts)])
        self._start, self._end = processor.start_ids(), processor.end_ids()
        self._passages = {
            (entry.file, entry.passage): Passages(entry.file, processor.encode_text, entry.passage)
            for entry in mixture
            if entry.file
        }
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def _chat(self) -> ChatDocuments:
        assert self.dialogues is not None, "a recipe with a share of the objective chat has dialogues"
        return self.dialogues

    def caption(self, clip: int) -> npt.NDArray[np.int32]:
        """The ids of the caption of a clip."""
        return self._captions[self._bounds[clip] : self._bounds[clip + 1]]

    def clip_of(self, sample: int) -> int:
        """The clip that a sample shows."""
        number, part = divmod(sample, self.parts)
        first, end = (place * len(self.clips) // self.parts for place in (part, part + 1))
        turn, place = divmod(number, end - first)
        if not self.shuffle:
            return first + place
        if (turn, part) not in self._orders:
            self._orders.pop((turn - 2, part), None)  # a batch reaches into two turns at most
            self._orders[turn, part] = np.random.default_rng([self.seed, turn, part]).permutation(end - first)
        return first + int(self._orders[turn, part][place])

    def length(self, sample: int, latent_frames: int | None = None) -> int:
        """``len(self.document(sample, latent_frames))``, without writing it."""
        if self.mixture.entry(sample).objective == "chat":
            return self._chat.length(self.mixture, sample, shuffle=self.shuffle)
        shown = self._shown(sample, latent_frames)
        length = len(self._start) + len(shown.caption)
        if self._ends(shown.entry):
            length += len(self._end)
        if shown.entry.objective == "text":
            return length
        template, header = self.processor.template, shown.header
        length += template.length(header)
        if shown.prefixed:
            length += _prefix_length(template, header.grid)
        if header.mode == "frame":
            copied = np.unique(shown.frame[~shown.known])
            length += len(copied) * len(template.frame(header.grid)) + int((copied > 0).sum()) * header.actions
        return length

    def document(self, sample: int, latent_frames: int | None = None) -> Document:
        """What ``sample`` shows, with ``latent_frames`` only the first of them, as a clip of that length."""
        if self.mixture.entry(sample).objective == "chat":
            return self._chat.document(self.mixture, sample, shuffle=self.shuffle)
        shown = self._shown(sample, latent_frames)
        entry = shown.entry
        writer = DocumentWriter(self.processor.template, self.processor.layout)
        writer.text(self._start, scored=False)
        if entry.objective == "caption":
            self._write_video(writer, sample, shown)
            writer.text(shown.caption.tolist(), scored=True)
        else:
            writer.text(shown.caption.tolist(), scored=self.score_text or entry.objective == "text")
            if entry.objective != "text":
                self._write_video(writer, sample, shown)
        if self._ends(entry):
            writer.text(self._end, scored=True)
        return writer.finish()

    def check_context(self, positions: int | None, *, pack: int = 0) -> None:
        """Raise :class:`DataError` naming the longest caption unless every document fits ``positions`` ids, and a
        packed row (0: rows are not packed)."""
        for file, passage in self._passages:
            if positions is not None and len(self._start) + passage > positions:
                raise DataError(
                    f"passages of {passage} ids of {file} do not fit the {positions} that the model reads: lower"
                    " passage"
                )
        if self.dialogues is not None:
            self.dialogues.check_context(positions, pack=pack, entries=self.mixture.entries)
        lengths = [self._longest(clip) for clip in range(len(self.clips))]
        read, where = max((read, -clip) for clip, (read, _) in enumerate(lengths))
        if positions is not None and read > positions:
            clip, names = -where, self.clips.names
            of = f"the caption of {names[clip]}" if names else f"caption {clip}"
            raise DataError(
                f"a document takes {read} ids but the model reads {positions}: shorten {of}"
                f" ({len(self.caption(clip))} ids), lower the clips' size or number of frames, or take a model with"
                " more positions"
            )
        written = max(written for _, written in lengths)
        if pack and written > pack:
            raise DataError(f"a document takes {written} ids, a packed row holds {pack}: raise training.pack")

    def _longest(self, clip: int) -> tuple[int, int]:
        """Ids of the longest document of a clip at most as the model reads it, and at least as it is written, where
        copies of frames stand behind it."""
        template, grid, actions = self.processor.template, self.clips.grid_of(clip), self._action_count(clip)
        video = template.length(VideoHeader(grid=grid, fps=self.clips.fps_of(clip), actions=actions))
        text, end, written = len(self._start) + len(self.caption(clip)), len(self._end), 0
        for entry in self.mixture.entries:
            if entry.objective == "chat":
                continue
            length = len(self._start) + entry.passage if entry.file else text + (end if self._ends(entry) else 0)
            length += 0 if entry.objective == "text" else video
            if entry.mode == "frame" and entry.task == "text_to_video":  # of other tasks known frames have no copies
                length += grid.t * len(template.frame(grid)) + (grid.t - 1) * actions
            written = max(written, length)
        prefixed = any(entry.mode != "maskgit" and entry.task in _PREFIXED for entry in self.mixture.entries)
        return text + video + end + (_prefix_length(template, grid) if prefixed else 0), written

    def digest(self) -> str:
        """64 hexadecimal digits that differ where the clips, or the ids of their captions or of texts, do."""
        found = hashlib.sha256(self.clips.digest().encode() + self._captions.tobytes())
        for passages in self._passages.values():
            found.update(passages.ids.tobytes())
        if self.dialogues is not None:
            found.update(self.dialogues.digest().encode())
        return found.hexdigest()

    def _ends(self, entry: MixtureConfig) -> bool:
        """Whether the end of the document is written, and asked for; a passage has none."""
        return not entry.file and (self.score_text or not entry.draws_video)

    def _action_count(self, clip: int) -> int:
        return self.processor.codec.temporal_stride if self.clips.has_actions(clip) else 0

    def _shown(self, sample: int, latent_frames: int | None) -> _Shown:
        clip, entry = self.clip_of(sample), self.mixture.entry(sample)
        grid = self.clips.grid_of(clip)
        if latent_frames is not None and latent_frames < grid.t:
            grid = Grid(t=latent_frames, h=grid.h, w=grid.w)
        header = VideoHeader(grid=grid, mode=entry.mode, fps=self.clips.fps_of(clip), actions=self._action_count(clip))
        caption = self.caption(clip)
        if entry.draws_video and self.mixture.drops_caption(sample, self.prompt_drop):
            caption = caption[:0]
        if entry.file:
            caption = self._passages[entry.file, entry.passage].at(self.mixture.passage_noise(sample))
        cells = self.processor.layout.cells(grid, self.processor.vocabulary.slots).numpy()
        known = known_cells(entry.task, grid, self.mixture.task_noise(sample))
        return _Shown(
            clip=clip, entry=entry, header=header, caption=caption, known=known[tuple(cells.T)], frame=cells[:, 0]
        )

    def _write_video(self, writer: DocumentWriter, sample: int, shown: _Shown) -> None:
        processor, header, grid = self.processor, shown.header, shown.header.grid
        codes = self.clips.codes_of(shown.clip)[None, :, : grid.t]
        code_ids = processor.code_ids(codes)[0].numpy()
        actions = self._action_ids(shown.clip, grid) if header.actions else None
        asked = ~shown.known if shown.entry.draws_video else np.zeros_like(shown.known)
        if header.mode != "next_token":
            noise = self.mixture.mask_noise(sample, len(asked) + grid.t)
            asked = hide(asked, shown.frame if header.mode == "frame" else None, shown.entry.schedule, noise)
        if shown.prefixed:
            writer.known(code_ids, shown.known, grid)
        writer.video(code_ids, header, asked=asked, action_ids=actions)

    def _action_ids(self, clip: int, grid: Grid) -> npt.NDArray[np.int64]:
        actions = self.clips.actions_of(clip)
        whole = self.processor.action_ids(actions, self.clips.grid_of(clip), self.clips.num_frames_of(clip))
        return whole[: (grid.t - 1) * self.processor.codec.temporal_stride].numpy()


def _prefix_length(template: Template, grid: Grid) -> int:
    """Of the known cells of a video before it."""
    return len(template.body(VideoHeader(grid=grid)).ids) + 2


def needs_prefix(known: npt.NDArray[np.bool_], frame: npt.NDArray[np.int64], mode: str) -> bool:
    """Whether some known place lies beyond what an unknown one before it can see.

    ``known`` and ``frame`` ``[S]`` are of the places of a video's codes. By next-token a code sees the places before
    it, frame by frame those of its own latent frame too, and at once all of them.
    """
    if mode == "maskgit" or known.all() or not known.any():
        return False
    first = int(np.flatnonzero(~known)[0])
    beyond = known & (frame > frame[first]) if mode == "frame" else known[first:]
    return bool(beyond.any())
