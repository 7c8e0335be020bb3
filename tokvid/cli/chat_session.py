"""A chat as a person holds it: what is attached to the next message, commands, and clips that become files.

It knows no terminal and no page: what happens comes out as lines and as the events of :mod:`tokvid_lm.chat`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from tokvid_lm import VideoLM
    from tokvid_lm.chat import Event, Shown
    from tokvid_lm.segments import Segment, Turn

COMMANDS: dict[str, str] = {
    "/video": "FILE [start-end]: attach a video (or a window of it, in seconds) to the next message",
    "/image": "FILE: attach a picture to the next message",
    "/mode": "[MODE]: say or set how videos are drawn",
    "/seed": "[N]: say or set the seed",
    "/retry": ": answer the last message once more, with the next seed",
    "/save": "FOLDER: save the conversation (an earlier one there is replaced)",
    "/load": "FOLDER: go on with a saved conversation",
    "/clear": ": begin anew",
    "/help": ": this list",
    "/quit": ": leave (Ctrl-D too)",
}
_WINDOW = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)?")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a command gives: ``lines`` to show, an answer to follow, or the end."""

    lines: tuple[str, ...] = ()
    events: Iterator[Event] | None = None
    ends: bool = False


class ChatSession:
    """One conversation with a model that the user calls ``name``. Clips are written into ``folder`` (None: a new one
    in the current folder, when there is a first clip)."""

    def __init__(
        self,
        lm: VideoLM,
        *,
        name: str,
        folder: Path | None = None,
        mode: str | None = None,
        seed: int = 0,
        video: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        from tokvid_lm.chat import Chat
        from tokvid_lm.samplers.sampling import Sampling

        self.lm = lm
        self.attached: list[Segment] = []
        self._video = video or {}
        self._folder = folder
        words = None if not text else Sampling(**text)
        self.chat = Chat(
            lm, name=name, mode=mode, seed=seed, text=words, video=self._video, max_new_tokens=max_new_tokens
        )

    @property
    def modes(self) -> list[str]:
        """In which the model was trained to draw."""
        return [sampling.mode for sampling in self.lm.settings.sampling]

    def say(self, text: str) -> Iterator[Event]:
        """Say ``text`` with what is attached, which then is not attached any more; raises for what cannot be said."""
        from tokvid_lm.segments import TextSegment

        segments = [*self.attached, *([TextSegment(checked_text(text))] if text else [])]
        events = self.chat.say(segments)
        self.attached = []
        return events

    def command(self, line: str) -> Reply:
        """Do what a line that begins with ``/`` says; raises :class:`DataError` for one that says nothing known."""
        try:
            name, *rest = shlex.split(line)
        except ValueError as error:
            raise DataError(f"{line!r} cannot be read: {error}; quote names with blanks in them") from error
        if name not in COMMANDS:
            raise DataError(f"there is no command {name!r}: {did_you_mean(name, COMMANDS)} (/help lists them)")
        reply: Reply = getattr(self, f"do_{name[1:]}")(rest)
        return reply

    def saved(self, shown: Shown) -> Path:
        """Write a clip of the answer under the next free name; its path."""
        from tokvid_lm.chat_files import save_clip

        folder = self.make_folder(f"tokvid-chat-{datetime.now():%Y%m%d-%H%M%S}")
        number = 1
        while (path := folder / f"clip-{number:03d}.mp4").exists():
            number += 1
        save_clip(self.lm, shown.segment, path)
        return path

    def make_folder(self, default: str) -> Path:
        """The folder of this conversation's files, made now where there was none; ``default`` is its name then."""
        if self._folder is None:
            self._folder = Path(default)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def attach(self, path: str, window: str | None = None, *, picture: bool = False) -> str:
        """Attach a clip to the next message; a line that says what it is."""
        from tokvid_lm.chat_files import read_clip

        start, end = 0.0, None
        if window is not None:
            found = _WINDOW.fullmatch(window)
            if found is None:
                raise DataError(f"a window of a video is written start-end in seconds, 2.5-4 say, got {window!r}")
            start, end = float(found[1]), None if found[2] is None else float(found[2])
        clip = read_clip(self.lm, Path(path).expanduser(), start=start, end=end, picture=picture)
        self.attached.append(clip.segment)
        frames = clip.segment.frames
        assert frames is not None
        _, _, count, height, width = frames.shape
        what = "its first picture" if picture else "a picture" if count == 1 else f"{count} frames"
        of_middle = "its middle " if clip.size[0] * width != clip.size[1] * height else ""  # the rest is cut off
        scaled = "" if clip.size == (height, width) else f", {of_middle}scaled to {height}x{width}"
        said = f"{Path(path).name}: {what} of {clip.size[0]}x{clip.size[1]}{scaled}, with the next message"
        return said if clip.note is None else f"{clip.note}{scaled}, with the next message"

    def do_video(self, rest: list[str]) -> Reply:
        """``/video FILE [start-end]``."""
        if len(rest) not in (1, 2):
            raise DataError("which video? /video FILE [start-end], a name with blanks in quotes")
        return Reply(lines=(self.attach(*rest),))

    def do_image(self, rest: list[str]) -> Reply:
        """``/image FILE``: the first picture of it."""
        if len(rest) != 1:
            raise DataError("which picture? /image FILE")
        return Reply(lines=(self.attach(rest[0], picture=True),))

    def do_mode(self, rest: list[str]) -> Reply:
        """``/mode [MODE]``."""
        lines = []
        if rest:
            mode, video = " ".join(rest), dict(self._video)
            if mode == "next_token" and video.pop("steps", None) is not None:
                lines.append("next_token draws code after code: --steps is for the other modes")
            self.chat.set_drawing(mode, **video)
        sampling = self.chat.sampling
        if sampling is None:
            return Reply(lines=("this model draws no videos",))
        return Reply(lines=(*lines, f"videos are drawn by {sampling.mode}; it knows {', '.join(self.modes)}"))

    def do_seed(self, rest: list[str]) -> Reply:
        """``/seed [N]``."""
        if rest:
            if len(rest) != 1 or not re.fullmatch(r"\d{1,18}", rest[0]):
                raise DataError(f"a seed is a number from 0 on, got {' '.join(rest)!r}")
            self.chat.seed = int(rest[0])
        return Reply(lines=(f"the seed is {self.chat.seed}",))

    def do_retry(self, rest: list[str]) -> Reply:
        """``/retry``."""
        _nothing_more("/retry", rest)
        events = self.chat.retry()
        surest = "; words are the likeliest, so only a clip differs" if self.chat.text.top_k == 1 else ""
        return Reply(lines=(f"once more, with seed {self.chat.seed}{surest}",), events=events)

    def do_save(self, rest: list[str]) -> Reply:
        """``/save FOLDER``."""
        from tokvid_lm.chat_files import save_conversation

        folder, forgotten = _folder("/save", rest), self.chat.forgotten
        save_conversation(self.lm, self.chat.turns, folder)
        without = f"; the {forgotten} before them, which the model has forgotten, are not" if forgotten else ""
        return Reply(lines=(f"{len(self.chat.turns)} turns are in {folder}{without}",))

    def do_load(self, rest: list[str]) -> Reply:
        """``/load FOLDER``."""
        from tokvid_lm.chat_files import load_conversation

        self.chat.load(load_conversation(self.lm, _folder("/load", rest)))
        return Reply(lines=transcript(self.chat.turns))

    def do_clear(self, rest: list[str]) -> Reply:
        """``/clear``: the attached clips too."""
        _nothing_more("/clear", rest)
        self.chat.clear()
        self.attached = []
        return Reply(lines=("a new conversation",))

    def do_help(self, rest: list[str]) -> Reply:
        """``/help``."""
        return Reply(
            lines=(*(f"{name} {what}".replace(" : ", ": ") for name, what in COMMANDS.items()), *what_it_knows(self.lm))
        )

    def do_quit(self, rest: list[str]) -> Reply:
        """``/quit``."""
        return Reply(ends=True)


def what_it_knows(lm: VideoLM) -> tuple[str, ...]:
    """The line in which a model tells what it was trained on, if it does."""
    return () if lm.settings.about is None else (f"it knows {lm.settings.about}",)


def checked_text(text: str) -> str:
    """``text``, or :class:`DataError` for half characters, which stand for bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"character {error.start + 1} of the message is no UTF-8 text; write it in UTF-8") from error
    return text


def transcript(turns: Sequence[Turn]) -> tuple[str, ...]:
    """A line a turn, with a word for every clip."""
    from tokvid_lm.segments import TextSegment

    lines = []
    for turn in turns:
        pieces = [segment.text if isinstance(segment, TextSegment) else "[video]" for segment in turn.segments]
        lines.append(f"{turn.role}: {' '.join(pieces)}")
    return tuple(lines)


def _folder(command: str, rest: list[str]) -> str:
    if len(rest) != 1:
        raise DataError(f"which folder? {command} FOLDER")
    return str(Path(rest[0]).expanduser())


def _nothing_more(command: str, rest: list[str]) -> None:
    if rest:
        raise DataError(f"{command} takes nothing more, got {' '.join(rest)!r}")
