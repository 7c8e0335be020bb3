"""The chat in a terminal: lines in with history and completion, text that streams, clips in coloured half blocks."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokvid.cli.chat_session import COMMANDS, ChatSession, what_it_knows
from tokvid.cli.main import EXIT_ERROR
from tokvid.errors import TokvidError

if TYPE_CHECKING:
    from tokvid_lm.chat import Event, Shown

_PROMPT = "> "
_WIDEST = 64  # columns of a preview
_PASTE_PAUSE_S = 0.03  # lines that come faster than this were pasted, and are one message
_HISTORY = 1000
_TAKES_PATH = ("/video", "/image", "/save", "/load")


class Terminal:
    """A session at a terminal, or at pipes, which get no pictures and no colours."""

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        self._failed = False
        self._draws = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ

    def talk(self) -> int:
        """Until the user leaves. An error, or Ctrl-C in an answer, is one line, and the conversation goes on; at pipes
        the exit status tells that there was one."""
        if sys.stdin.isatty():
            self.note(f"talking with {self.session.chat.name}; /help lists the commands, Ctrl-D ends")
            for line in what_it_knows(self.session.lm):
                self.note(line)
        with _history():
            while True:
                try:
                    line = self._line()
                except EOFError:
                    return self._status()
                except KeyboardInterrupt:
                    self.note("\nCtrl-D or /quit leaves")
                    continue
                except UnicodeDecodeError as error:
                    self._error(f"byte {error.start + 1} of the message is no UTF-8 text; write it in UTF-8")
                    continue
                if not self._take(line):
                    return self._status()

    def answer_once(self, text: str) -> int:
        """Say ``text``, follow the answer, and end."""
        self._follow(self.session.say(text))
        return 0

    def note(self, line: str) -> None:
        """Something that is not part of the conversation."""
        print(printable(line), file=sys.stderr, flush=True)

    def _take(self, line: str) -> bool:
        """Do what was typed; whether the conversation goes on."""
        text = line.strip()
        if not text and not self.session.attached:
            return True
        try:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines and all(line.startswith("/") for line in lines):  # several may have been pasted
                return all(self._command(line) for line in lines)
            self._answer(self.session.say(text))
        except KeyboardInterrupt:
            self.note("\nstopped before there was an answer")
        except (TokvidError, OSError) as error:
            self._error(" ".join(str(error).split()))
        return True

    def _command(self, line: str) -> bool:
        """Do what a command says; whether the conversation goes on."""
        reply = self.session.command(line)
        for said in reply.lines:
            self.note(said)
        if reply.events is not None:
            self._answer(reply.events)
        return not reply.ends

    def _answer(self, events: Iterator[Event]) -> None:
        """Show an answer; Ctrl-C ends it, and not the conversation."""
        try:
            self._follow(events)
        except KeyboardInterrupt:
            self.note("\nstopped; what was said until here is kept (/retry answers once more)")

    def _follow(self, events: Iterator[Event]) -> None:
        """Show an answer as it comes."""
        from tokvid_lm.chat import Drawing, Forgotten, Said, Shown

        middle = False  # of a line
        try:
            for event in events:
                if isinstance(event, Said):
                    print(printable(event.text), end="", flush=True)
                    middle = not event.text.endswith("\n")
                    continue
                if middle:
                    print(flush=True)
                    middle = False
                if isinstance(event, Drawing):
                    self._progress(f"drawing {event.done}/{event.total}" if event.done < event.total else "")
                elif isinstance(event, Shown):
                    self._show(event)
                elif isinstance(event, Forgotten):
                    self.note(f"the context was full: the {event.turns} oldest turns are forgotten")
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()  # whoever is stopped in the middle keeps what was said
            if middle:
                print(flush=True)

    def _progress(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:<20}\r", end="", file=sys.stderr, flush=True)

    def _show(self, shown: Shown) -> None:
        path = self.session.saved(shown)
        if self._draws:
            with contextlib.suppress(KeyboardInterrupt):  # the clip is done; Ctrl-C ends the preview
                self._play(shown)
        print(path, flush=True)

    def _play(self, shown: Shown) -> None:
        """The clip once, in place, at its own rate."""
        from tokvid.report.half_blocks import half_blocks
        from tokvid_lm.chat_files import DEFAULT_FPS, pictures_of

        size = shutil.get_terminal_size()
        pictures = pictures_of(self.session.lm, shown.segment)
        columns = min(_WIDEST, size.columns, max(1, 2 * (size.lines - 2) * pictures.shape[2] // pictures.shape[1]))
        pause = 1.0 / (shown.segment.fps or DEFAULT_FPS)
        for number, picture in enumerate(pictures):
            began = time.monotonic()
            lines = half_blocks(picture, columns)
            back = f"\x1b[{len(lines)}A" if number else ""
            print(back + "\n".join(lines), flush=True)
            if number + 1 < len(pictures):
                time.sleep(max(0.0, began + pause - time.monotonic()))

    def _line(self) -> str:
        """What was typed; lines that were pasted together come together."""
        if not sys.stdin.isatty():
            raw = sys.stdin.buffer.readline()
            if not raw:
                raise EOFError
            return raw.decode("utf-8")
        lines = [input(_PROMPT)]
        while select.select([sys.stdin], [], [], _PASTE_PAUSE_S)[0]:
            try:
                lines.append(input())
            except EOFError:
                break
        return "\n".join(lines)

    def _error(self, message: str) -> None:
        self._failed = True
        self.note(f"error: {message}")

    def _status(self) -> int:
        return EXIT_ERROR if self._failed and not sys.stdin.isatty() else 0


def printable(text: str) -> str:
    """``text`` without what would command a terminal: control characters become marks, but for line ends and tabs."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else "\ufffd" for letter in text)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Inside, the terminal's lines have a history that outlives it, and Tab completes commands and paths."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tokvid" / "chat_history"
    readline.set_completer(_complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_HISTORY)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)  # it holds all that was said


def _complete(word: str, state: int) -> str | None:
    """The ``state``-th completion of ``word`` for readline: a command, or a path after one that takes it."""
    import readline

    found = completions(readline.get_line_buffer(), word)
    return found[state] if state < len(found) else None


def completions(line: str, word: str) -> list[str]:
    """What ``word``, the last of ``line``, may go on as."""
    command, blank, _ = line.lstrip().partition(" ")
    if not blank:
        return [name for name in COMMANDS if name.startswith(word)] if word.startswith("/") else []
    if command == "/mode":
        return [mode for mode in ("next_token", "maskgit", "frame") if mode.startswith(word)]
    if command not in _TAKES_PATH:
        return []
    parent, _, start = word.rpartition("/")
    folder = Path(f"{parent}/" if "/" in word else ".").expanduser()
    try:
        found = sorted(entry for entry in folder.iterdir() if entry.name.startswith(start))
    except OSError:
        return []
    before = f"{parent}/" if "/" in word else ""
    return [f"{before}{entry.name}{'/' if entry.is_dir() else ''}" for entry in found]
