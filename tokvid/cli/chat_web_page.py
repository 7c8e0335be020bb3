"""What one visitor of the web chat says and sees: messages in their order, clips as files, one answer at a time.

It knows no web framework. A page is used from several threads: a message is taken and an answer cancelled while another
page's answer is under way, and whoever follows an answer takes the model for one step at a time.
"""

from __future__ import annotations

import math
import secrets
import shutil
import threading
import time
import traceback
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from tokvid.atomic import atomic_path
from tokvid.cli.chat_session import checked_text
from tokvid.cli.main import one_line
from tokvid.errors import DataError, TokvidError
from tokvid.report.code_grid import code_grid
from tokvid.video import Video, write_video

if TYPE_CHECKING:
    from tokvid_lm import VideoLM, VideoSegment
    from tokvid_lm.chat import Event, Shown
    from tokvid_lm.samplers.sampling import Sampling
    from tokvid_lm.segments import Role, Segment, Turn

MOST_CHARACTERS = 4000
MOST_CLIPS = 4
CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_SEED = 2**31 - 1
_MOST_WAITING = 32  # answers of all pages
_TOLD_EVERY_S = 0.1  # text comes faster than a page should be drawn
_CODES_SIDE = 64  # pixels of a latent frame's grid, at least


@dataclass(frozen=True, kw_only=True)
class Message:
    """``content`` is text, or the file of a clip or of its codes; ``note`` marks what neither side has said."""

    role: Role
    content: str | Path
    kind: Literal["text", "clip", "codes", "note"]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the next videos are drawn; ``mode`` None: as the model is best, other Nones: as it was evaluated."""

    mode: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None


_AS_EVALUATED = Drawing()


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A message that waits for its answer: ``files`` from ``start`` seconds on, and text; or to try again."""

    drawing: Drawing
    text: str = ""
    files: tuple[Path, ...] = ()
    start: float = 0.0
    retry: bool = False


class ChatHost:
    """The model that all pages talk with, one step of one page at a time, and the folder that their files lie in."""

    def __init__(
        self,
        lm: VideoLM,
        *,
        name: str,
        folder: Path,
        mode: str | None = None,
        seed: int = 0,
        text: Sampling | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        self.lm = lm
        self.name = name
        self.folder = folder
        self.step = threading.RLock()  # an answer that nobody follows any more may end inside another's step
        self._options: dict[str, Any] = {
            "name": name,
            "mode": mode,
            "seed": seed,
            "text": text,
            "max_new_tokens": max_new_tokens,
        }
        self._pages: weakref.WeakSet[Page] = weakref.WeakSet()
        self.open_page()  # what cannot be is said before anybody comes

    def open_page(self) -> Page:
        """A new conversation; its files go when nobody holds it any more."""
        from tokvid_lm.chat import Chat

        chat = Chat(self.lm, **self._options)
        folder = self.folder / "pages" / secrets.token_hex(16)  # nobody guesses another's
        folder.mkdir(parents=True)
        page = Page(self, chat, folder)
        weakref.finalize(page, shutil.rmtree, folder, ignore_errors=True)
        self._pages.add(page)
        return page

    def waiting(self) -> int:
        """How many answers are under way or wait for their turn."""
        return sum(page.busy for page in list(self._pages))


class Page:
    """One conversation, as :meth:`ChatHost.open_page` opens it. ``status`` says what is being done."""

    def __init__(self, host: ChatHost, chat: Any, folder: Path) -> None:
        self.host = host
        self.chat = chat
        self.folder = folder
        self.status = ""
        self._messages: list[Message] = []
        self._said: list[Turn] = []  # all of it, also what the model has forgotten
        self._remembered = False  # whether the last two of them are the last message and its answer
        self._next_seed = 0
        self._answer_at = 0  # the first message of the last answer
        self._asked: _Asked | None = None
        self._begun = False  # whether the last message that was taken has an answer, or the beginning of one
        self._answering = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._files = 0

    @property
    def busy(self) -> bool:
        """Whether an answer is under way, or waits for its turn."""
        return self._answering or self._asked is not None

    def messages(self, *, codes: bool = True) -> list[Message]:
        """What is shown, with or without the pictures of codes."""
        return [message for message in list(self._messages) if codes or message.kind != "codes"]

    def ask(
        self, text: str, files: Sequence[str | Path] = (), start: float = 0.0, drawing: Drawing = _AS_EVALUATED
    ) -> bool:
        """Take a message for :meth:`answer`; False where it cannot be, and then a note says why.

        Raises :class:`DataError` while another answer is under way, and while many of others wait.
        """
        with self._lock:
            self._check_free()
            paths = tuple(map(Path, files))
            try:
                _check_message(text, paths, start)
                _check_seed(drawing.seed)
            except TokvidError as error:
                self._note(str(error))
                return False
            self._take(_Asked(text=text, files=paths, start=start, drawing=drawing))
            self._begun = False
            if text.strip():
                self._add("user", text, "text")
        return True

    def ask_again(self, drawing: Drawing = _AS_EVALUATED) -> None:
        """Take the last message once more.

        Raises :class:`DataError` while another answer is under way, and where the last message has none.
        """
        with self._lock:
            self._check_free()
            if not self._said:
                raise DataError("there is no answer yet to try again: say something first")
            if not self._begun:
                raise DataError(
                    "the last message was not answered, so there is nothing to try again: send it once more"
                )
            _check_seed(drawing.seed)
            self._take(_Asked(retry=True, drawing=drawing))

    def cancel(self) -> None:
        """Stop the answer at its next step; one that still waits for its turn is not begun."""
        with self._lock:
            self._stop.set()
            if self._asked is not None:
                self._asked, self.status = None, ""
                self._note("cancelled before it was answered")

    def clear(self) -> None:
        """Begin anew; raises :class:`DataError` while an answer is under way."""
        with self._lock:
            self._check_free()
            self.chat.clear()
            self._messages, self._said, self._answer_at = [], [], 0
            for file in self.folder.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()

    def answer(self) -> Iterator[None]:
        """Answer the message that was taken, if there is one, and pause whenever there is more to see.

        Nothing that goes wrong is raised: a note says it, and the conversation goes on. Whoever closes the iterator
        keeps what was said until then.
        """
        with self._lock:
            asked = self._asked
            if asked is None:
                return
            self._answering, self._asked = True, None
        try:
            self.status = "reading"
            yield
            yield from self._follow(asked)
        except Exception as error:
            line = one_line(error)
            if line is None:
                traceback.print_exception(error)
                line = "the server failed at this answer, and its terminal says how; the conversation goes on"
            for path in asked.files:
                line = line.replace(str(path), path.name)
            self._note(line)
        finally:
            self._answering, self.status = False, ""

    def save(self) -> Path:
        """All that was said as a zip: the folder of a conversation that ``/load`` reads, and the clips as videos."""
        from tokvid_lm.chat_files import save_conversation

        turns, clips = list(self._said), [m.content for m in self.messages() if m.kind == "clip"]
        if not turns:
            raise DataError("nothing was said yet that could be saved")
        folder = self.folder / "conversation"
        save_conversation(self.host.lm, turns, folder)
        path = self._new_file("conversation-{:03d}.zip")
        with atomic_path(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"conversation/{file.name}")
            for clip in clips:
                if isinstance(clip, Path) and clip.is_file():  # very old files may be gone
                    archive.write(clip, f"videos/{clip.name}")
        return path

    def _check_free(self) -> None:
        if self.busy:
            raise DataError("one answer at a time: wait for this one, or cancel it")

    def _take(self, asked: _Asked) -> None:
        others = self.host.waiting()
        if others >= _MOST_WAITING:
            raise DataError(f"{others} answers to others wait already: try again in a while")
        self.status = f"waiting for {others} other answer{'s'[: others > 1]}" if others else "reading"
        self._stop.clear()
        self._asked = asked

    def _follow(self, asked: _Asked) -> Iterator[None]:
        with self.host.step:
            self._set(asked.drawing, retry=asked.retry)
            events = self._retry() if asked.retry else self._say(asked)
        self._begun = True
        self._answer_at = len(self._messages)
        try:
            yield
            told = time.monotonic()
            for event in self._stepped(events):
                is_text = self._show(event)
                if self._stop.is_set():
                    break
                if not is_text or time.monotonic() - told > _TOLD_EVERY_S:
                    yield
                    told = time.monotonic()
        finally:
            with self.host.step:
                events.close()
            self._remember()
        if self._stop.is_set():
            self._note("cancelled: what was said until then stays")
        elif len(self._messages) == self._answer_at:
            self._note("the model said nothing")

    def _stepped(self, events: Iterator[Event]) -> Iterator[Event]:
        """Events of an answer; the model is taken for each step alone."""
        while True:
            with self.host.step:
                event = next(events, None)
            if event is None:
                return
            yield event

    def _set(self, drawing: Drawing, *, retry: bool) -> None:
        settings = {"steps": drawing.steps, "guidance_scale": drawing.guidance}
        self.chat.set_drawing(drawing.mode, **{key: value for key, value in settings.items() if value is not None})
        if drawing.seed is not None and not retry:
            self.chat.seed = drawing.seed
        elif retry:
            # A seed that was changed since the last answer is the one to try.
            chosen = self.chat.seed if drawing.seed is None else drawing.seed
            self._next_seed = chosen if chosen != self.chat.seed else (chosen + 1) % (MOST_SEED + 1)

    def _retry(self) -> Any:
        events = self.chat.retry(seed=self._next_seed)
        del self._messages[self._answer_at :]
        if self._remembered:
            self._said = self._said[:-2]
        self._remembered = False
        return events

    def _say(self, asked: _Asked) -> Any:
        """Read the clips, show them as the model sees them, and say all of it."""
        from tokvid_lm.chat_files import read_clip
        from tokvid_lm.segments import TextSegment, VideoSegment

        at = len(self._messages) - bool(asked.text.strip())  # clips stand before the text
        segments: list[Segment] = []
        for path in asked.files:
            clip = read_clip(self.host.lm, path, start=asked.start)
            segments.append(clip.segment)
            if clip.note is not None:
                self._note(clip.note.replace(str(path), path.name))
        text = [TextSegment(asked.text)] if asked.text.strip() else []
        events = self.chat.say([*segments, *text])
        self._remembered = False
        shown: list[Message] = []
        for segment in self.chat.turns[-1].segments:  # those have their codes
            if isinstance(segment, VideoSegment):
                shown += [
                    Message(role="user", content=self._clip_file(segment), kind="clip"),
                    Message(role="user", content=self._codes_file(segment), kind="codes"),
                ]
        self._messages[at:at] = shown
        return events

    def _show(self, event: Event) -> bool:
        """Put an event among the messages; whether it was text."""
        from tokvid_lm.chat import Drawing as Drawn
        from tokvid_lm.chat import Forgotten, Said

        if isinstance(event, Said):
            last = self._messages[-1]
            if len(self._messages) > self._answer_at and last.kind == "text":
                self._messages[-1] = replace(last, content=f"{last.content}{event.text}")
            else:
                self._add("assistant", event.text, "text")
            self.status = "answering"
            return True
        if isinstance(event, Drawn):
            self.status = f"drawing: {event.done} of {event.total} latent frames"
        elif isinstance(event, Forgotten):
            self._note(f"the oldest {event.turns} turns no longer fit what the model can read: it has forgotten them")
        else:
            self._show_clip(event)
        return False

    def _show_clip(self, shown: Shown) -> None:
        from tokvid_lm.chat_files import save_clip

        path = self._new_file("clip-{:03d}.mp4")
        save_clip(self.host.lm, shown.segment, path)
        self._add("assistant", path, "clip")
        self._add("assistant", self._codes_file(shown.segment), "codes")

    def _clip_file(self, segment: VideoSegment) -> Path:
        """What the visitor has shown, as the model reads it; nothing of ours made it, so nothing says so."""
        from tokvid_lm.chat_files import DEFAULT_FPS, pictures_of

        pictures = pictures_of(self.host.lm, segment)
        if len(pictures) == 1:
            path = self._new_file("shown-{:03d}.png")
            Image.fromarray(pictures[0]).save(path)
            return path
        path = self._new_file("shown-{:03d}.mp4")
        fps = segment.fps or self.host.lm.settings.fps or DEFAULT_FPS
        write_video(path, Video(frames=pictures, fps=fps))
        return path

    def _codes_file(self, segment: VideoSegment) -> Path:
        assert segment.codes is not None
        codes = segment.codes.numpy()
        square = max(1, -(-_CODES_SIDE // codes.shape[3]))
        path = self._new_file("codes-{:03d}.png")
        Image.fromarray(code_grid(codes, self.host.lm.codec.codebook_size, square=square)).save(path)
        return path

    def _new_file(self, pattern: str) -> Path:
        self._files += 1
        return self.folder / pattern.format(self._files)

    def _remember(self) -> None:
        pair = self.chat.turns[-2:]
        if [turn.role for turn in pair] == ["user", "assistant"]:
            self._said += pair
            self._remembered = True

    def _add(self, role: Role, content: str | Path, kind: Literal["text", "clip", "codes", "note"]) -> None:
        self._messages.append(Message(role=role, content=content, kind=kind))

    def _note(self, line: str) -> None:
        self._add("assistant", " ".join(line.split()), "note")


def _check_message(text: str, files: Sequence[Path], start: float) -> None:
    """Raise :class:`DataError` for what is too much, or nothing, or no text."""
    if not text.strip() and not files:
        raise DataError("there is nothing to answer: write something, or attach a video")
    checked_text(text)
    if len(text) > MOST_CHARACTERS:
        lines = text.count("\n") + 1
        raise DataError(
            f"a message has at most {MOST_CHARACTERS:,} characters, this one has {len(text):,} in {lines:,} lines: say"
            " it shorter"
        )
    if len(files) > MOST_CLIPS:
        raise DataError(f"a message has at most {MOST_CLIPS} clips, this one has {len(files)}: show fewer at a time")
    for path in files:
        if path.suffix.lower() not in CLIP_SUFFIXES:
            raise DataError(f"{path.name} is no video and no picture by its name: {' '.join(CLIP_SUFFIXES)} are read")
    if not (math.isfinite(start) and start >= 0):
        raise DataError(f"a clip is read from 0 s on or later, got {start}")


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed <= MOST_SEED:
        raise DataError(f"a seed is a number from 0 to {MOST_SEED}, got {seed}")
