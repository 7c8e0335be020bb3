"""A page of the web chat by itself, without Gradio and without a browser."""

from __future__ import annotations

import json
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.web_chat import ASKED, SOME, WORDS, broken, build, drawing_seed, hour, sound, sprite
from tokvid import read_video
from tokvid.cli.chat_web_page import MOST_CHARACTERS, MOST_CLIPS, ChatHost, Drawing, Page
from tokvid.errors import DataError, ModelError
from tokvid.video import probe_video
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.chat import Chat


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    return build()


@pytest.fixture(scope="module")
def talker() -> VideoLM:
    """A model whose answers are text as long as they may be."""
    return build(ends=False, draws=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sprite(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def seed(lm: VideoLM, clip: Path) -> int:
    return drawing_seed(lm, clip)


def open_page(lm: VideoLM, folder: Path, **options: Any) -> Page:
    return ChatHost(lm, name="tiny", folder=folder, **{"text": SOME, "max_new_tokens": WORDS, **options}).open_page()


def answer(page: Page) -> list[str]:
    """Answer what was asked; what the page then shows, as ``role kind``."""
    for _ in page.answer():
        pass
    return kinds(page)


def kinds(page: Page) -> list[str]:
    return [f"{message.role} {message.kind}" for message in page.messages()]


def notes(page: Page) -> list[str]:
    return [str(message.content) for message in page.messages() if message.kind == "note"]


def test_a_page_shows_clips_codes_and_text(lm: VideoLM, clip: Path, seed: int, tmp_path: Path) -> None:
    page = open_page(lm, tmp_path)
    assert page.ask(ASKED, [clip], drawing=Drawing(mode="frame", steps=2, seed=seed)) and page.busy
    shown = answer(page)
    assert shown[:4] == ["user clip", "user codes", "user text", "assistant text"] and not page.busy
    at = shown.index("assistant clip")
    assert shown[at + 1] == "assistant codes"
    video, codes = (page.messages()[number].content for number in (at, at + 1))
    assert isinstance(video, Path) and isinstance(codes, Path) and video.parent == codes.parent == page.folder
    assert read_video(video).frames.shape == (9, 32, 32, 3)
    assert Image.open(codes).size[0] > Image.open(codes).size[1] >= 64  # three latent frames beside each other
    made_by = json.loads(probe_video(video).metadata["tokvid"])
    assert (made_by["model"], made_by["sampling"]["seed"], made_by["sampling"]["steps"]) == ("tiny", seed, 2)
    assert made_by["sampling"]["mode"] == "frame" and len(made_by["prompt_sha256"]) == 64
    assert "tokvid" not in probe_video(page.messages()[0].content).metadata  # we have not made that
    assert not any(message.kind == "codes" for message in page.messages(codes=False))


def test_a_picture_is_a_clip(lm: VideoLM, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    page = open_page(lm, tmp_path)
    assert page.ask("", [tmp_path / "grey.png"])
    assert answer(page)[:2] == ["user clip", "user codes"]
    picture = page.messages()[0].content
    assert isinstance(picture, Path) and picture.suffix == ".png" and Image.open(picture).size == (32, 32)


def test_an_answer_is_tried_again_with_the_next_seed(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path, seed=5)
    with pytest.raises(DataError, match="no answer yet"):
        page.ask_again()
    page.ask("one")
    assert answer(page) == ["user text", "assistant text"]
    first = page.messages()[1].content
    page.ask_again()
    assert answer(page) == ["user text", "assistant text"]
    assert page.messages()[1].content != first and page.chat.seed == 6
    page.ask_again(Drawing(seed=5))
    answer(page)
    assert page.messages()[1].content == first  # a seed that was chosen is taken
    assert len(page.chat.turns) == 2
    assert zipfile.ZipFile(page.save()).namelist() == ["conversation/conversation.json"]


def test_bad_messages_are_noted_and_the_conversation_goes_on(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path)
    page.ask("hello")
    before = answer(page)
    lines = "a line of ten thousand\n" * 10_000
    for text, files, words in [
        (" \n", [], "there is nothing to answer"),
        (lines, [], rf"at most {MOST_CHARACTERS:,} characters, this one has 230,000 in 10,001 lines"),
        ("half \ud800 letter", [], "character 6 of the message is no UTF-8"),
        ("see", ["a.mp4"] * (MOST_CLIPS + 1), "at most 4 clips"),
        ("see", ["notes.txt"], "notes.txt is no video and no picture by its name"),
    ]:
        assert not page.ask(text, files) and not page.busy
        assert re.search(words, notes(page)[-1])
    assert not page.ask("see", ["a.mp4"], start=float("nan"))
    assert not page.ask("see", drawing=Drawing(seed=-1)) and "a seed is a number from 0 to" in notes(page)[-1]
    assert kinds(page) == before + ["assistant note"] * 7
    page.ask("and now?")
    assert answer(page)[-2:] == ["user text", "assistant text"]
    assert [len(turn.segments) for turn in page.chat.turns] == [1, 1, 1, 1]


def test_bad_files_are_noted_by_their_names_alone(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path)
    for path, words in [
        (broken(tmp_path), "broken.mp4"),
        (sound(tmp_path), "sound.mp4"),
        (tmp_path / "gone.mp4", "gone.mp4"),
    ]:
        assert page.ask("look", [path])
        assert answer(page)[-2:] == ["user text", "assistant note"]
        assert words in notes(page)[-1] and str(tmp_path) not in notes(page)[-1]
    assert page.chat.turns == ()
    page.ask("hello")
    assert answer(page)[-2:] == ["user text", "assistant text"]


def test_of_a_long_video_a_window_is_read(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path)
    page.ask("look", [hour(tmp_path)], start=1800.0)
    assert answer(page) == ["user clip", "user codes", "user text", "assistant note", "assistant text"]
    assert re.match(r"hour\.mp4: of 1800\.\d s the model reads 1\.1 s from 1800 s on \(9 frames", notes(page)[0])
    page.ask("look", [tmp_path / "hour.mp4"], start=4000.0)
    assert "start earlier" in notes(page)[-1] or "start earlier" in (answer(page) and notes(page)[-1])


def test_what_is_too_long_for_the_model_is_noted(tmp_path: Path) -> None:
    lm = build()
    lm.model.config.max_position_embeddings = 64
    page = open_page(lm, tmp_path)
    page.ask("word " * 100)
    assert answer(page) == ["user text", "assistant note"] and "the model's context has 64" in notes(page)[0]
    page.ask("hello")
    assert "assistant text" in answer(page)


def test_our_own_faults_are_noted_without_a_traceback(
    talker: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_page(talker, tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Chat, "_next_id", fail)
        page.ask("hello")
        assert answer(page) == ["user text", "assistant note"]
    assert "the conversation goes on" in notes(page)[0] and "out of memory" not in notes(page)[0]
    assert "RuntimeError: out of memory" in capsys.readouterr().err
    page.ask("hello")
    assert answer(page)[-2:] == ["user text", "assistant text"]


def test_what_was_said_until_it_was_cancelled_stays(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path, max_new_tokens=2000)
    page.ask("hello")
    following = page.answer()
    while not any(message.role == "assistant" for message in page.messages()):
        next(following)
    with pytest.raises(DataError, match="one answer at a time"):
        page.ask("more")
    with pytest.raises(DataError, match="one answer at a time"):
        page.clear()
    page.cancel()
    for _ in following:
        pass
    assert kinds(page) == ["user text", "assistant text", "assistant note"] and "cancelled" in notes(page)[0]
    said = page.messages()[1].content
    (segment,) = page.chat.turns[1].segments
    assert isinstance(segment, TextSegment) and 0 < len(segment.text) < 1000
    assert isinstance(said, str) and segment.text.startswith(said)
    # Whoever goes away closes the iterator.
    page.ask("hello again")
    following = page.answer()
    for _ in range(5):
        next(following)
    following.close()
    assert not page.busy and len(page.chat.turns) == 4
    page.clear()
    assert page.messages() == [] and page.chat.turns == () and list(page.folder.iterdir()) == []


def test_an_answer_that_waits_can_be_cancelled(talker: VideoLM, tmp_path: Path) -> None:
    host = ChatHost(talker, name="tiny", folder=tmp_path)
    one, two = host.open_page(), host.open_page()
    one.ask("hello")
    two.ask("hello")
    assert (one.status, two.status) == ("reading", "waiting for 1 other answer")
    two.cancel()
    assert not two.busy and answer(two) == ["user text", "assistant note"] and two.chat.turns == ()


def test_only_a_message_that_was_answered_is_tried_again(talker: VideoLM, tmp_path: Path) -> None:
    """Else the answer before it would go."""
    page = open_page(talker, tmp_path)
    page.ask("one")
    answer(page)
    page.ask("two")
    page.cancel()
    said = page.messages()
    with pytest.raises(DataError, match="the last message was not answered"):
        page.ask_again()
    page.ask("see", [broken(tmp_path)])
    answer(page)
    with pytest.raises(DataError, match="the last message was not answered"):
        page.ask_again()
    assert page.messages()[: len(said)] == said
    page.ask("three")
    answer(page)
    page.ask_again()
    assert answer(page)[-2:] == ["user text", "assistant text"]


def test_so_many_answers_wait_and_no_more(talker: VideoLM, tmp_path: Path) -> None:
    host = ChatHost(talker, name="tiny", folder=tmp_path)
    pages = [host.open_page() for _ in range(33)]
    for page in pages[:-1]:
        page.ask("hello")
    with pytest.raises(DataError, match="32 answers to others wait already"):
        pages[-1].ask("hello")
    assert not pages[-1].busy and not pages[-1].messages()
    pages[0].cancel()
    assert pages[-1].ask("hello")


def test_answers_of_two_pages_do_not_mix(talker: VideoLM, tmp_path: Path) -> None:
    alone = []
    for text in ("one", "two"):
        page = open_page(talker, tmp_path)
        page.ask(text)
        answer(page)
        alone.append(page.messages()[-1].content)
    host = ChatHost(talker, name="tiny", folder=tmp_path, text=SOME, max_new_tokens=WORDS)
    pages = [host.open_page(), host.open_page()]
    threads = []
    for page, text in zip(pages, ("one", "two"), strict=True):
        page.ask(text)
        threads.append(threading.Thread(target=answer, args=(page,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [page.messages()[-1].content for page in pages] == alone


def test_the_files_of_a_page_go_with_it(talker: VideoLM, tmp_path: Path) -> None:
    page = open_page(talker, tmp_path)
    folder = page.folder
    assert folder.is_dir() and len(folder.name) == 32
    del page
    assert not folder.exists()


def test_a_model_that_does_not_talk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not trained to talk"):
        ChatHost(build(chat=False), name="tiny", folder=tmp_path)
