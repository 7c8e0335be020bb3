"""A dialogue in JSON lines: what the user says goes in, the whole dialogue comes out, clips as files beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokvid.cli.chat_session import ChatSession, checked_text
from tokvid.errors import DataError, TokvidError, did_you_mean
from tokvid.video import check_window
from tokvid.video_source import existing_file

if TYPE_CHECKING:
    from tokvid_lm.segments import Segment

OUTPUT = "dialog.jsonl"
DEFAULT_FOLDER = "tokvid-chat"
_MESSAGE_KEYS = {"user": {"role", "content"}, "assistant": {"role", "content", "forgotten_turns"}}
_KEYS = {"text": {"type", "text"}, "video": {"type", "path", "start", "end"}}
Messages = list[tuple[int, dict[str, Any]]]


def read_script(script: Path, out: Path | None) -> Messages:
    """The messages of a script with the numbers of their lines, before any model is there to answer them.

    Raises :class:`DataError` naming a line that says no message, and for an ``out`` that holds a dialogue already.
    """
    output = (Path(DEFAULT_FOLDER) if out is None else out) / OUTPUT
    if output.exists():
        raise DataError(f"{output} exists: name another folder with --out")
    messages, before = list(_messages(script)), "assistant"
    for number, message in messages:
        try:
            _check(message, before, script.parent)
        except TokvidError as error:
            raise DataError(f"{script}, line {number}: {error}") from error
        before = message["role"]
    if not messages:
        raise DataError(f"{script} holds no message: a line of it is a message")
    return messages


def run_script(session: ChatSession, script: Path, messages: Messages) -> int:
    """Answer each message that was read from ``script``; every line of the dialogue is printed and written as it is
    done.

    Paths in the script are relative to it. Turns of the assistant that stand in it are taken as said. Raises
    :class:`DataError` naming the line that cannot be answered; what came before is written then.
    """
    folder = session.make_folder(DEFAULT_FOLDER)
    for place, (number, message) in enumerate(messages):
        given = messages[place + 1][1] if place + 1 < len(messages) else {}
        try:
            lines = _exchange(session, message, given, script.parent, folder)
        except TokvidError as error:
            raise DataError(f"{script}, line {number}: {error}") from error
        # None before the first answer, and never another's.
        with (folder / OUTPUT).open("a" if place else "x", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for line in lines:
            print(json.dumps(line), flush=True)  # in ASCII: nothing in it can command a terminal
    return 0


def _exchange(
    session: ChatSession, message: dict[str, Any], following: dict[str, Any], folder: Path, out: Path
) -> list[dict[str, Any]]:
    """The lines of a user's message and of its answer, which may stand in the script as the ``following`` message."""
    if message["role"] == "assistant":
        return []  # taken with the user's message before it
    said = list(_segments(session, message["content"], folder))
    if following.get("role") == "assistant":
        forgotten = session.chat.take(said, list(_segments(session, following["content"], folder)))
        following = {key: value for key, value in following.items() if key != "forgotten_turns"}
        told = {"forgotten_turns": forgotten} if forgotten else {}
        return [_seen_from(message, folder, out), _seen_from(following, folder, out) | told]
    return [_seen_from(message, folder, out), _answer(session, said)]


def _seen_from(message: dict[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """A message of a script in ``folder`` as a line of one in ``out``, from where clips have other paths."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    pieces = [
        piece | {"path": os.path.relpath(folder / piece["path"], out)} if piece.get("type") == "video" else piece
        for piece in content
    ]
    return message | {"content": pieces}


def _messages(script: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = script.read_text(encoding="utf-8").split("\n")  # others may stand in a text
    except UnicodeDecodeError as error:
        raise DataError(f"{script} is not UTF-8 text: byte {error.start} is none; save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{script}, line {number}: is no JSON ({error})") from error
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise DataError(
                f'{script}, line {number}: a message is {{"role": "user" or "assistant", "content": ...}}, got'
                f" {line[:80]}"
            )
        yield number, message


def _check(message: dict[str, Any], before: str, folder: Path) -> None:
    """Raise what is wrong with a message of a script in ``folder`` after one of the role ``before``."""
    if message["role"] == before == "assistant":
        raise DataError("the assistant answers, and nobody has said anything before it")
    known = _MESSAGE_KEYS[message["role"]]
    unknown = sorted(set(message) - known)
    if unknown:
        raise DataError(f"a message of the {message['role']} has no {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    content = message.get("content")
    if not isinstance(content, str | list):
        raise DataError(f"the content of a message is text or a list of pieces, got {content!r}")
    pieces = _pieces(content)
    for piece in pieces:
        _check_piece(piece, folder)
    if message["role"] == "user" and not any(piece.get("text", "a video") for piece in pieces):
        raise DataError("there is nothing to answer: say something, or show a video")


def _check_piece(piece: Any, folder: Path) -> None:
    """Raise what is wrong with a piece of a message of a script in ``folder``."""
    kind = piece.get("type") if isinstance(piece, dict) else None
    unknown = sorted(set(piece) - _KEYS[kind]) if isinstance(kind, str) and kind in _KEYS else []
    if unknown:
        raise DataError(f"a piece of {kind} has no {unknown[0]!r}: {did_you_mean(unknown[0], _KEYS[str(kind)])}")
    if kind == "text" and isinstance(piece.get("text"), str):
        checked_text(piece["text"])
    elif kind == "video" and isinstance(piece.get("path"), str):
        start, end = piece.get("start", 0.0), piece.get("end")
        if not (_is_seconds(start) and (end is None or _is_seconds(end))):
            raise DataError(f"start and end of a video are seconds, got {start!r} and {end!r}")
        check_window(start, end)
        existing_file(folder / piece["path"])
    else:
        raise DataError(
            'a piece of a message is {"type": "text", "text": "..."} or {"type": "video", "path": "..."}, got'
            f" {piece!r}"
        )


def _pieces(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _segments(session: ChatSession, content: str | list[dict[str, Any]], folder: Path) -> Iterator[Segment]:
    from tokvid_lm.chat_files import read_clip
    from tokvid_lm.segments import TextSegment

    for piece in _pieces(content):
        if piece["type"] == "text":
            yield TextSegment(piece["text"])
            continue
        clip = read_clip(session.lm, folder / piece["path"], start=piece.get("start", 0.0), end=piece.get("end"))
        if clip.note is not None:
            print(clip.note, file=sys.stderr, flush=True)
        yield clip.segment


def _answer(session: ChatSession, segments: list[Segment]) -> dict[str, Any]:
    from tokvid_lm.chat import Forgotten, Said, Shown

    content: list[dict[str, str]] = []
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    for event in session.chat.say(segments):
        if isinstance(event, Said):
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += event.text
            else:
                content.append({"type": "text", "text": event.text})
        elif isinstance(event, Shown):
            content.append({"type": "video", "path": session.saved(event).name})
        elif isinstance(event, Forgotten):
            answer["forgotten_turns"] = answer.get("forgotten_turns", 0) + event.turns
    return answer
