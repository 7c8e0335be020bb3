"""A conversation says the same with and without its cache, whoever stops it where, and however it is gone on with."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lm.tiny_chat import SETTINGS, build
from tokvid.config import to_mapping
from tokvid.errors import ModelError, ShapeError, TokvidError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm import chat as chat_module
from tokvid_lm.chat import Chat, Drawing, Event, Forgotten, Said, Shown
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.generation import SAMPLERS
from tokvid_lm.made_by import model_id
from tokvid_lm.positions import PositionKind
from tokvid_lm.samplers.canvas import Canvas
from tokvid_lm.samplers.runner import Runner, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, Turn
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import END_OF_TURN, MODES, Mode
from tokvid_tokenizers import VideoCodec

SOME = Sampling(top_k=6)


def open_chat(lm: VideoLM, **changes: Any) -> Chat:
    return Chat(lm, **{"mode": "next_token", "text": SOME, "max_new_tokens": 10, **changes})


def say(chat: Chat, *pieces: str | VideoSegment) -> list[Event]:
    return list(chat.say([TextSegment(piece) if isinstance(piece, str) else piece for piece in pieces]))


def contents(segments: Sequence[Segment]) -> list[object]:
    """What can be compared of segments."""
    return [
        segment.text if isinstance(segment, TextSegment) else (segment.codes.tolist(), segment.num_frames)  # type: ignore[union-attr]
        for segment in segments
    ]


def told(turns: Sequence[Turn]) -> list[tuple[str, list[object]]]:
    return [(turn.role, contents(turn.segments)) for turn in turns]


def answer(events: Sequence[Event]) -> list[object]:
    """What was answered: the text between the videos, and their codes."""
    parts: list[object] = [""]
    for event in events:
        if isinstance(event, Said):
            parts[-1] = f"{parts[-1]}{event.text}" if isinstance(parts[-1], str) else event.text
        elif isinstance(event, Shown):
            parts += [contents([event.segment])[0], ""]
    return parts


def again(chat: Chat, **changes: Any) -> Chat:
    """A new conversation of the same turns."""
    fresh = open_chat(chat.lm, **{"seed": chat.seed, **changes})
    fresh.load(chat.turns)
    return fresh


@functools.cache
def find(lm: VideoLM, *kinds: type[Event], first: str = "hello", **changes: Any) -> int:
    """A seed with which the answer has events of these ``kinds``, in this order."""
    for seed in range(200):
        found = iter(say(open_chat(lm, seed=seed, **changes), first))
        if all(any(isinstance(event, kind) for event in found) for kind in kinds):
            return seed
    raise AssertionError(f"no seed of 200 gives {[kind.__name__ for kind in kinds]}")


def clip(seed: int = 0, *, latent_frames: int = 2, side: int = 2) -> VideoSegment:
    generator = torch.Generator().manual_seed(seed)
    return VideoSegment(codes=torch.randint(1000, (1, 1, latent_frames, side, side), generator=generator), fps=8.0)


def prefilled(lm: VideoLM, document: Document) -> tuple[Runner, Tensor]:
    """The document read at once, and the features of its last id."""
    with sampling_from(lm.model, None):
        runner = Runner(lm.model, lm.head, [document], 8, positions=lm.positions)
        return runner, runner.prefill()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


# With and without a cache.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("family", "positions", "guidance"),
    [("llama", "1d", 1.0), ("llama", "1d", 2.0), ("llama", "mm", 2.0), ("mistral", "1d", 2.0)],
)
def test_cached_is_recomputed(
    family: str, positions: PositionKind, guidance: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit of a conversation and all that is said; also beyond Mistral's window of 16."""
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    plain = Runner.logits

    def spy(runner: Runner, features: Tensor, low: int, high: int) -> Tensor:
        logits = plain(runner, features, low, high)
        seen[runner._cache is not None].append(logits)
        return logits

    lm = build(family, positions=positions)
    seed = find(lm, Said, Shown, Said)
    monkeypatch.setattr(Runner, "logits", spy)
    chats = [
        open_chat(lm, mode=mode, seed=seed, video={"guidance_scale": guidance}, use_cache=cached)
        for cached in (True, False)
    ]
    shown = 0
    for pieces in (["hello"], [clip(), "and?"], ["more"], ["go on", clip(1)]):
        ours, theirs = (say(chat, *pieces) for chat in chats)
        assert [type(event) for event in ours] == [type(event) for event in theirs]
        assert answer(ours) == answer(theirs)
        shown += sum(isinstance(event, Shown) for event in ours)
    assert shown and told(chats[0].turns) == told(chats[1].turns)
    assert len(seen[True]) == len(seen[False]) > 12
    for cached, recomputed in zip(seen[True], seen[False], strict=True):
        close(cached, recomputed)


@pytest.mark.parametrize("mode", MODES)
def test_text_that_is_not_whole_letters_is_recomputed_alike(mode: str) -> None:
    """Any byte is said here: what is read again is not what was drawn."""
    lm = build(letters=False)
    for seed in range(2):
        chats = [open_chat(lm, mode=mode, seed=seed, text=Sampling(), use_cache=cached) for cached in (True, False)]
        for words in ("hello", "and?", "more"):
            ours, theirs = (say(chat, words) for chat in chats)
            assert answer(ours) == answer(theirs)
        assert told(chats[0].turns) == told(chats[1].turns)


@pytest.mark.parametrize("mode", MODES)
def test_the_cache_holds_what_a_fresh_reading_holds(mode: str) -> None:
    lm = build()
    chat = open_chat(lm, mode=mode, seed=find(lm, Said, Shown, Said, mode=mode))
    for words in ("hello", "more"):
        say(chat, words)
        document, read = chat.document(), chat._read
        runner, _ = prefilled(lm, document)
        assert document.ids[: len(read)].tolist() == read and len(document) - len(read) <= 2
        assert chat._runner is not None and chat._runner._cache is not None and runner._cache is not None
        assert chat._runner.seen == len(read)
        for ours, theirs in zip(chat._runner._cache._reserved, runner._cache._reserved, strict=True):
            for mine, whole in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                assert mine is not None and whole is not None
                close(mine, whole[..., : len(read), :])


@pytest.mark.parametrize("words", ["hello", "a long way to say little"])
def test_a_turn_reads_only_what_is_new(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build()
    chat = open_chat(lm, seed=find(lm, Said, Shown))
    say(chat, "hello")
    fed: list[int] = []
    plain = Runner._forward

    def forward(runner: Runner, ids: Tensor, *rest: Any) -> Tensor:
        fed.append(ids.shape[1])
        return plain(runner, ids, *rest)

    monkeypatch.setattr(Runner, "_forward", forward)
    for _ in range(4):
        fed.clear()
        events = say(chat, words)
        # The end of the turn before, who speaks, what is said, its end, and who speaks next.
        assert fed[0] == len(words) + 4
        video = lm.template.length(VideoHeader(grid=lm.codec.grid_for(5, 16, 16), fps=8.0))
        shown = sum(isinstance(event, Shown) for event in events)
        assert fed.count(video) == shown, "a video that is done is read once more"
        assert all(count in (1, video) or count < video for count in fed[1:])


@pytest.mark.parametrize("mode", MODES)
def test_room_grows_with_the_conversation(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build()
    seed = find(lm, Said, Shown, mode=mode)
    chats = [
        open_chat(lm, mode=mode, seed=seed, video={"guidance_scale": 2.0}, use_cache=c) for c in (True, True, False)
    ]
    for chat, room in zip(chats, (512, 0, 0), strict=True):
        monkeypatch.setattr(chat_module, "_ROOM", room)
        for words in ("hello", "more", "and"):
            say(chat, words)
    one, other, recomputed = (told(chat.turns) for chat in chats)
    assert one == other == recomputed


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("mode", MODES)
def test_a_video_is_what_the_sampler_draws_after_what_was_said(mode: Mode, guidance: float) -> None:
    lm = build()
    seed = find(lm, Said, Shown, mode=mode)
    events = say(open_chat(lm, mode=mode, seed=seed, video={"guidance_scale": guidance}), "hello")
    said, video, *_ = answer(events)
    grid = lm.codec.grid_for(5, 16, 16)
    header = VideoHeader(grid=grid, mode=mode, fps=8.0)
    prompt, nothing = (DocumentWriter(lm.template, lm.layout) for _ in range(2))
    turns = [Turn("user", (TextSegment("hello"),)), Turn("assistant", (TextSegment(str(said)),))]
    lm.processor.write_turns(prompt, turns, open_last=True)
    nothing.text(lm.processor.start_ids(), scored=False)
    prompts = []
    for writer in (prompt, nothing)[: 1 if guidance == 1.0 else 2]:
        writer.header(header)
        prompts.append(writer.finish())
    canvas = Canvas.build(lm.template, lm.layout, header, 1)
    sampling = replace(lm.sampling_for(mode), guidance_scale=guidance, seed=seed)
    with sampling_from(lm.model, None):
        runner = Runner(lm.model, lm.head, prompts, len(canvas), positions=lm.positions)
        *_, (_, ids) = SAMPLERS[mode](runner, canvas, lm.vocabulary, sampling, torch.tensor([0]))
    assert video == (lm.processor.decode_codes(ids[:, canvas.is_code], grid).tolist(), 5)


# Events.


@pytest.mark.parametrize("mode", MODES)
def test_events_tell_what_the_conversation_becomes(mode: str) -> None:
    lm = build()
    chat = open_chat(lm, mode=mode, seed=find(lm, Said, Shown, Said, mode=mode))
    for number, words in enumerate(("hello", "more", "and", "so")):
        events = say(chat, words)
        assert [turn.role for turn in chat.turns] == ["user", "assistant"] * (number + 1)
        said, last = answer(events), chat.turns[-1].segments
        assert [part for part in said if part != ""] == [part for part in contents(last) if part != ""]
        videos = [list(group) for shows, group in itertools.groupby(events, _is_video) if shows]
        for video in videos:
            drawn = [event for event in video if isinstance(event, Drawing)]
            shown = [event for event in video if isinstance(event, Shown)]
            dones = [2] if mode == "maskgit" else [1, 2]
            assert [(event.done, event.total) for event in drawn] == [(done, 2) for done in dones] * len(shown)
            for event in shown:
                segment = event.segment
                assert segment.codes is not None and segment.codes.shape == (1, 1, 2, 2, 2)
                assert segment.frames is not None and segment.frames.shape == (1, 3, 5, 16, 16)
                assert segment.frames.device.type == "cpu" and segment.fps == 8.0 and segment.num_frames == 5
                expected = lm.codec.decode(segment.codes, num_frames=5)
                assert torch.equal(segment.frames, expected)


def _is_video(event: Event) -> bool:
    return isinstance(event, Drawing | Shown)


def test_pieces_of_letters_come_whole() -> None:
    """Joined, what was told is what is remembered, whatever bytes are drawn."""
    lm = build(letters=False)
    for seed in range(3):
        chat = open_chat(lm, seed=seed, text=Sampling(), max_new_tokens=40)
        for words in ("hällo", "möre"):
            parts = [part for part in answer(say(chat, words)) if part != ""]
            assert parts == [part for part in contents(chat.turns[-1].segments) if part != ""]
            assert all(not part.endswith("\ufffd") for part in parts if isinstance(part, str))


def test_the_document_is_what_the_processor_writes() -> None:
    lm = build()
    chat = open_chat(lm, seed=find(lm, Said, Shown))
    say(chat, "hello"), say(chat, clip(), "<|end|> <|video|>")
    special, processor = lm.vocabulary.special, lm.processor
    ids = [256]
    for turn in chat.turns:
        ids.append(special[f"<|{turn.role}|>"])
        for segment in turn.segments:
            if isinstance(segment, TextSegment):
                ids += processor.encode_text(segment.text)
            else:
                ids += processor.encode([segment], end=False).tolist()[1:]
        ids.append(special[END_OF_TURN])
    assert chat.document().ids.tolist() == ids
    events = chat.say([TextSegment("go on")])
    next(event for event in events if isinstance(event, Said))
    assert chat._answer is not None
    (said,) = chat._answer
    assert isinstance(said, TextSegment)
    tail = [special["<|assistant|>"], *processor.encode_text(said.text)]
    assert chat.document().ids.tolist()[-len(tail) :] == tail, "a turn under way is not ended"


def test_frames_that_are_shown_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build()
    frames = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calls: list[int] = []
    plain = type(lm.codec).encode

    def encode(codec: VideoCodec, frames: Tensor) -> Tensor:
        calls.append(1)
        return plain(codec, frames)

    monkeypatch.setattr(type(lm.codec), "encode", encode)
    one, other = open_chat(lm), open_chat(lm)
    say(one, VideoSegment(frames=frames, fps=8.0), "and?"), say(one, "more")
    assert len(calls) == 1
    codes = lm.codec.encode(frames)
    say(other, VideoSegment(codes=codes, num_frames=5, fps=8.0), "and?"), say(other, "more")
    assert told(one.turns) == told(other.turns)


# Seeds.


@pytest.mark.parametrize("mode", MODES)
def test_what_is_said_and_drawn_is_a_function_of_the_seed(mode: str) -> None:
    lm = build()
    seed = find(lm, Said, Shown, mode=mode)

    def talk(seed: int) -> list[tuple[str, list[object]]]:
        chat = open_chat(lm, mode=mode, seed=seed)
        say(chat, "hello"), say(chat, "more")
        return told(chat.turns)

    assert talk(seed) == talk(seed)
    assert len({str(talk(number)) for number in range(6)}) > 3


def test_the_likeliest_words_need_no_seed() -> None:
    lm = build(draws=False)
    talks = {str([*answer(say(Chat(lm, seed=seed, max_new_tokens=6), "hello"))]) for seed in range(4)}
    assert len(talks) == 1


def test_two_videos_of_a_conversation_have_noise_of_their_own() -> None:
    lm = build()
    chat = open_chat(lm, seed=find(lm, Shown, Shown, max_new_tokens=40), max_new_tokens=40)
    one, other, *_ = (event.segment.codes for event in say(chat, "hello") if isinstance(event, Shown))
    assert one is not None and other is not None and not torch.equal(one, other)


# Stopping, trying again, going on from elsewhere.


@pytest.mark.parametrize("stop", range(1, 6))
def test_stopped_in_its_words_it_goes_on_as_if_loaded(stop: int) -> None:
    lm = build(draws=False)
    chat = open_chat(lm, seed=3)
    say(chat, "hello")
    events = chat.say([TextSegment("tell me more")])
    heard = list(itertools.islice(events, stop))
    events.close()  # type: ignore[attr-defined]
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert answer(heard) == ["".join(str(part) for part in contents(chat.turns[-1].segments))]
    fresh = again(chat)
    for words in ("so", "and"):
        assert say(chat, words) == say(fresh, words)
    assert told(chat.turns) == told(fresh.turns)


@pytest.mark.parametrize("mode", MODES)
def test_stopped_in_a_drawing_it_goes_on_as_if_loaded(mode: str) -> None:
    lm = build()
    for done in (1, 2):
        chat = open_chat(lm, mode=mode, seed=find(lm, Said, Shown, mode=mode))
        events = chat.say([TextSegment("hello")])
        heard = []
        for event in events:
            heard.append(event)
            if isinstance(event, Drawing) and event.done >= done:
                break
        events.close()  # type: ignore[attr-defined]
        assert contents(chat.turns[-1].segments) == [part for part in answer(heard) if part != ""]
        fresh = again(chat, mode=mode)
        for words in ("so", "and", "well"):
            ours, theirs = say(chat, words), say(fresh, words)
            assert answer(ours) == answer(theirs)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_video_it_goes_on_as_if_loaded(mode: str) -> None:
    """What is drawn next, too: its noise belongs to the conversation, not to the object that holds it."""
    lm = build()
    chat = open_chat(lm, mode=mode, seed=find(lm, Said, Shown, mode=mode))
    say(chat, "hello")
    fresh = again(chat, mode=mode)
    shown = 0
    for words in ("so", "and", "well", "go on"):
        ours, theirs = say(chat, words), say(fresh, words)
        assert answer(ours) == answer(theirs)
        shown += sum(isinstance(event, Shown) for event in ours)
    assert shown


def test_whose_answer_nobody_followed_is_not_answered() -> None:
    lm = build(draws=False)
    chat = open_chat(lm)
    chat.say([TextSegment("hello")])
    say(chat, "are you there?")
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert chat.turns[1].segments == ()
    fresh = open_chat(lm)
    fresh.load(chat.turns[:2])
    say(fresh, "are you there?")
    assert told(fresh.turns) == told(chat.turns)


def test_an_answer_under_way_ends_when_something_else_is_said() -> None:
    lm = build(draws=False)
    chat = open_chat(lm, seed=find(lm, Said, Said, Said))
    events = chat.say([TextSegment("hello")])
    heard = [next(events), next(events)]
    say(chat, "stop")
    events.close()  # type: ignore[attr-defined]
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert contents(chat.turns[1].segments) == answer(heard)
    assert contents(chat.turns[2].segments) == ["stop"]


@pytest.mark.parametrize("how", ["clear", "load", "retry"])
def test_an_answer_under_way_ends_when_the_conversation_changes(how: str) -> None:
    lm = build(draws=False)
    kept = (Turn("user", (TextSegment("hello"),)), Turn("assistant", (TextSegment("hi"),)))
    for seed in range(40):
        chat = open_chat(lm, seed=seed)
        chat.load(kept)
        events = chat.say([TextSegment("more")])
        if isinstance(next(events, None), Said):
            break
    if how == "clear":
        chat.clear()
    elif how == "load":
        chat.load(kept)
    else:
        list(chat.retry())
    before = told(chat.turns)
    events.close()  # type: ignore[attr-defined]
    assert told(chat.turns) == before
    assert [role for role, _ in before] == ["user", "assistant"] * {"clear": 0, "load": 1, "retry": 2}[how]


def test_retrying_says_what_a_fresh_chat_says() -> None:
    lm = build(draws=False)
    chat = open_chat(lm)
    say(chat, "hello"), say(chat, "more")
    before = chat.turns[:2]
    for seed in (None, 7, None, 0):
        expected = chat.seed + 1 if seed is None else seed
        events = list(chat.retry(seed=seed))
        assert chat.seed == expected and len(chat.turns) == 4
        fresh = open_chat(lm, seed=expected)
        fresh.load(before)
        assert events == say(fresh, "more")
        assert told(fresh.turns) == told(chat.turns)


@pytest.mark.parametrize("mode", MODES)
def test_retrying_draws_what_a_fresh_chat_draws(mode: str) -> None:
    lm = build()
    seed = find(lm, Said, Shown, mode=mode)
    chat = open_chat(lm, mode=mode, seed=seed)
    first = answer(say(chat, "hello"))
    assert answer(list(chat.retry(seed=seed))) == first
    other = find(lm, Shown, Said, mode=mode)
    assert answer(list(chat.retry(seed=other))) == answer(say(open_chat(lm, mode=mode, seed=other), "hello"))


def test_retrying_an_answer_that_was_stopped() -> None:
    lm = build(draws=False)
    chat = open_chat(lm, seed=find(lm, Said, Said, Said))
    events = chat.say([TextSegment("hello")])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert list(chat.retry(seed=5)) == say(open_chat(lm, seed=5), "hello")
    assert len(chat.turns) == 2


def test_what_was_said_can_be_changed() -> None:
    lm = build(draws=False)
    chat = open_chat(lm)
    say(chat, "hello"), say(chat, "more")
    kept = chat.turns[:2]
    chat.load(kept)
    fresh = open_chat(lm)
    fresh.load(kept)
    assert say(chat, "something else") == say(fresh, "something else")
    chat.clear()
    assert chat.turns == () and say(chat, "hello") == say(open_chat(lm), "hello")


def test_what_was_said_elsewhere_can_be_taken() -> None:
    lm = build(draws=False)
    frames = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = VideoSegment(codes=lm.codec.encode(frames), num_frames=5, fps=8.0)
    turns = [
        Turn("user", (TextSegment("look"), shown)),
        Turn("assistant", (TextSegment("a cat"),)),
        Turn("user", (TextSegment("and?"),)),
        Turn("assistant", (TextSegment("so"), shown)),
    ]
    chat, loaded = open_chat(lm), open_chat(lm)
    say(chat, "hello")
    chat.clear()
    chat.take([TextSegment("look"), VideoSegment(frames=frames, fps=8.0)], [TextSegment("a cat")])
    chat.take([TextSegment("and?")], [])
    chat.take_answer([TextSegment("so"), VideoSegment(frames=frames, fps=8.0)])
    loaded.load(turns)
    assert told(chat.turns) == told(loaded.turns) == told(turns)
    assert say(chat, "go on") == say(loaded, "go on")
    chat.say([TextSegment("more")])
    chat.take_answer([TextSegment("well")])
    assert told(chat.turns)[-2:] == [("user", ["more"]), ("assistant", ["well"])]
    with pytest.raises(ModelError, match="there is no answer yet to replace"):
        open_chat(lm).take_answer([TextSegment("so")])


@pytest.mark.parametrize("mode", MODES)
def test_a_video_says_how_it_was_drawn(mode: str) -> None:
    """After these ids, with these settings, in this mode."""
    lm = build()
    seed = find(lm, Said, Shown, mode=mode)
    chat = open_chat(lm, mode=mode, seed=seed, video={"temperature": 0.9})
    events = chat.say([TextSegment("hello")])
    facts = next(event.segment.made_by for event in events if isinstance(event, Shown))
    assert facts is not None and facts["seed"] == seed and facts["model_id"] == model_id(lm)
    assert facts["sampling"] == to_mapping(replace(lm.sampling_for(mode), temperature=0.9, seed=seed))
    ids = chat.document().ids.astype(np.int64)
    prompt = ids[: ids.tolist().index(lm.vocabulary.open_id)]
    assert facts["prompt_sha256"] == hashlib.sha256(prompt.tobytes()).hexdigest()


def test_the_mode_of_drawing_can_be_changed() -> None:
    lm = build()
    seed = find(lm, Shown)
    drawn = {}
    for mode in MODES:
        chat = open_chat(lm, mode="next_token", seed=seed)
        chat.set_drawing(mode)
        drawn[mode] = answer(say(chat, "hello"))
        assert drawn[mode] == answer(say(open_chat(lm, mode=mode, seed=seed), "hello"))
    chat = open_chat(lm, seed=seed)
    with pytest.raises(ModelError, match="unknown mode 'frames'"):
        chat.set_drawing("frames")
    with pytest.raises(ModelError, match="steps and choice_temperature are for the masked modes"):
        chat.set_drawing("next_token", steps=3)
    assert answer(say(chat, "hello")) == drawn["next_token"], "it draws as before"


# A context that is full.


def test_the_oldest_turns_are_forgotten_when_the_context_is_full() -> None:
    lm = build(context=128, draws=False)
    chat = open_chat(lm, seed=2)
    forgot = 0
    for number in range(14):
        before, words = chat.turns, f"this is what i say number {number}"
        events = say(chat, words)
        gone = sum(event.turns for event in events if isinstance(event, Forgotten))
        assert gone % 2 == 0 and all(event.turns > 0 for event in events if isinstance(event, Forgotten))
        assert told(chat.turns[: len(before) - gone]) == told(before[gone:])
        assert len(chat.document()) <= 128
        fresh = open_chat(lm, seed=2)
        fresh.load(before[gone:])
        assert answer(say(fresh, words)) == answer(events)
        forgot += gone
    assert forgot > 10 and len(chat.turns) + forgot == 28


def test_no_more_is_read_than_the_context_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is said, shown and drawn."""
    plain, most = Runner._run, 0

    def spy(runner: Runner, ids: Tensor, places: Tensor, **rest: Any) -> Tensor:
        nonlocal most
        most = max(most, runner.seen + ids.shape[1])
        return plain(runner, ids, places, **rest)

    monkeypatch.setattr(Runner, "_run", spy)
    lm = build(context=128, letters=False)
    for mode in MODES:
        chat = open_chat(lm, mode=mode, text=Sampling(), seed=1, max_new_tokens=12)
        for number in range(6):
            with contextlib.suppress(ModelError):  # an answer may alone be too long, and ends there
                say(chat, "a" * (7 * number % 23), *([clip(number)] if number % 3 == 0 else ["b"]))
    assert 100 < most <= 128


def test_turns_are_forgotten_in_the_middle_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build(context=64, draws=False)
    limit = open_chat(lm, max_new_tokens=60)._reserved_text()
    assert limit == 4, "a long answer is not waited for"
    seen: list[Tensor] = []
    plain = Runner.logits

    def spy(runner: Runner, features: Tensor, low: int, high: int) -> Tensor:
        seen.append(features.clone())
        return plain(runner, features, low, high)

    monkeypatch.setattr(Runner, "logits", spy)
    tried = 0
    for seed in range(20):
        chat = open_chat(lm, seed=seed, max_new_tokens=30)
        chat.load([Turn("user", (TextSegment("a" * 12),)), Turn("assistant", (TextSegment("b" * 12),))])
        events = chat.say([TextSegment("c" * 15)])
        for heard, event in enumerate(events):
            if isinstance(event, Forgotten):
                assert heard and event.turns == 2
                seen.clear()
                after = next(events, None)
                # What is said next answers what is left, read from its beginning.
                document = chat.document() if after is None else _without_last(chat)
                close(seen[0], prefilled(lm, document)[1][:, -1])
                tried += 1
        assert len(chat.turns) in (2, 4) and chat.turns[-2].segments == (TextSegment("c" * 15),)
    assert tried > 1


def _without_last(chat: Chat) -> Document:
    """What was read before the letter that was said last."""
    assert chat._answer is not None
    (said,) = chat._answer
    assert isinstance(said, TextSegment)
    fresh = open_chat(chat.lm)
    fresh._turns, fresh._answer = list(chat.turns), [TextSegment(said.text[:-1])]
    return fresh.document()


def test_what_cannot_fit_is_refused_and_nothing_is_lost() -> None:
    lm = build(context=128, draws=False)
    chat, fresh = open_chat(lm), open_chat(lm)
    with pytest.raises(ModelError, match=r"need \d+ positions, but the model's context has 128: say less"):
        chat.say([TextSegment("x" * 128)])
    assert chat.turns == ()
    for words in ("hello", "more"):
        assert say(chat, words) == say(fresh, words)
    before = chat.turns
    with pytest.raises(ModelError, match=r"show fewer or shorter videos"):
        chat.say([clip(latent_frames=12, side=4)])
    assert chat.turns == before
    assert say(chat, "go on") == say(fresh, "go on")
    most = 128 - 1 - 2 - 1 - 8  # bos, who speaks and the end, who answers, and what is kept for an answer
    assert say(chat, "y" * most)[0] == Forgotten(6) and chat.forgotten == 6
    with pytest.raises(ModelError, match="say less"):
        chat.say([TextSegment("y" * (most + 1))])
    assert len(chat.turns) == 2 and chat.forgotten == 6
    chat.clear()
    assert chat.forgotten == 0


@pytest.mark.parametrize(
    "segment",
    [
        VideoSegment(codes=torch.full((1, 1, 2, 2, 2), 1 << 20)),
        VideoSegment(codes=torch.zeros(1, 3, 2, 2, 2, dtype=torch.int64)),
        VideoSegment(codes=torch.zeros(1, 1, 2, 2, 2, dtype=torch.int64), known=torch.zeros(2, 2, 2, dtype=torch.bool)),
        VideoSegment(codes=torch.zeros(1, 1, 2, 2, 2, dtype=torch.int64), actions=torch.tensor([0, 1, 0, 0])),
        VideoSegment(codes=torch.zeros(1, 1, 2, 2, 2, dtype=torch.int64), num_frames=90),
        VideoSegment(frames=torch.zeros(1, 3, 5, 17, 16)),
    ],
    ids=["no code", "codebooks", "unknown", "actions", "length", "size"],
)
def test_what_is_no_video_of_the_model_is_refused_and_nothing_is_lost(segment: VideoSegment) -> None:
    lm = build(draws=False)
    chat, fresh = open_chat(lm), open_chat(lm)
    say(chat, "hello"), say(fresh, "hello")
    with pytest.raises((TokvidError, ValueError)):
        chat.say([segment])
    assert told(chat.turns[2:]) == []
    assert say(chat, "go on") == say(fresh, "go on")


def test_a_retry_that_cannot_fit_keeps_the_answer() -> None:
    lm = build(context=128, draws=False)
    chat = open_chat(lm)
    chat.load([Turn("user", (TextSegment("x" * 120),)), Turn("assistant", (TextSegment("well"),))])
    with pytest.raises(ModelError, match="say less"):
        chat.retry()
    assert [contents(turn.segments) for turn in chat.turns] == [["x" * 120], ["well"]]
    assert chat.seed == 0


# What a model must know.


def test_a_model_that_was_not_trained_to_talk_is_refused_with_one_line(video_lm: VideoLM) -> None:
    with pytest.raises(ModelError, match="this model has no chat template") as caught:
        Chat(video_lm)
    assert "\n" not in str(caught.value) and "tokvid train lm/sprites-chat" in str(caught.value)


def test_a_model_that_draws_no_videos_talks_all_the_same() -> None:
    base = build()
    lm = VideoLM(
        base.model, base.tokenizer, base.vocabulary, base.codec, settings=VideoSettings(sampling=(), captions=True)
    )
    for seed in range(20):
        chat = open_chat(lm, mode=None, seed=seed)
        assert not any(isinstance(event, Drawing | Shown) for event in say(chat, "hello"))
    with pytest.raises(ModelError, match="not trained to draw videos"):
        open_chat(lm, mode="frame")
    with pytest.raises(ModelError, match="not trained to draw videos"):
        open_chat(lm, mode=None, video={"temperature": 0.5})


def test_guidance_needs_a_prompt_of_nothing() -> None:
    base = build()
    settings = VideoSettings(sampling=SETTINGS.sampling, knows_null_prompt=False)
    lm = VideoLM(base.model, base.tokenizer, base.vocabulary, base.codec, settings=settings)
    open_chat(lm)
    with pytest.raises(ModelError, match="trained without prompt_drop"):
        open_chat(lm, video={"guidance_scale": 2.0})


def test_the_size_is_that_shown_last_where_none_was_trained() -> None:
    base = build()
    lm = VideoLM(base.model, base.tokenizer, base.vocabulary, base.codec, settings=VideoSettings(fps=8.0))
    seed = find(base, Shown)
    with pytest.raises(ModelError, match="show a video first"):
        say(open_chat(lm, seed=seed), "hello")
    shown: list[Segment] = [VideoSegment(codes=torch.zeros(1, 1, 2, 1, 1, dtype=torch.int64)), clip(side=3)]
    assert _size_drawn(lm, shown) == (5, 24, 24)
    long = VideoSegment(codes=torch.zeros(1, 1, 3, 3, 2, dtype=torch.int64), num_frames=7)
    assert _size_drawn(lm, [*shown, long]) == (7, 24, 16)


def test_the_size_of_frames_that_were_loaded_counts_too() -> None:
    base = build()
    lm = VideoLM(base.model, base.tokenizer, base.vocabulary, base.codec, settings=VideoSettings(fps=8.0))
    frames = torch.rand(1, 3, 7, 24, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert _size_drawn(lm, [VideoSegment(frames=frames)]) == (7, 24, 16)


def _size_drawn(lm: VideoLM, shown: Sequence[Segment]) -> tuple[int, ...]:
    """Of the first video that is drawn in a conversation that begins with what is ``shown``."""
    for seed in range(60):
        chat = open_chat(lm, seed=seed)
        chat.load([Turn("user", tuple(shown)), Turn("assistant", ())])
        for event in chat.say([TextSegment("go on")]):
            if isinstance(event, Shown):
                assert event.segment.frames is not None
                return tuple(event.segment.frames.shape[2:])
    raise AssertionError("no seed of 60 draws a video")


def test_what_makes_no_conversation_is_refused() -> None:
    lm = build()
    chat = open_chat(lm)
    with pytest.raises(ModelError, match="there is no answer yet to try again"):
        chat.retry()
    with pytest.raises(ModelError, match="there is nothing to answer"):
        chat.say([])
    with pytest.raises(ModelError, match="max_new_tokens must be at least 1, got 0"):
        open_chat(lm, max_new_tokens=0)
    user, assistant = Turn("user", ()), Turn("assistant", ())
    for turns in ([user], [assistant], [assistant, user], [user, user], [user, assistant, user]):
        with pytest.raises(ModelError, match=r"user and assistant by turns; got \["):
            chat.load(turns)
    assert chat.turns == ()
    with pytest.raises(ShapeError, match="a turn is that of user or assistant, got 'system'"):
        Turn("system", ())  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="a turn holds TextSegment and VideoSegment, got str"):
        Turn("user", ("hello",))  # type: ignore[arg-type]


def test_an_answer_has_an_end() -> None:
    lm = build(draws=False)
    lengths = []
    for seed in range(30):
        (said,) = answer(say(open_chat(lm, seed=seed, max_new_tokens=6), "hello"))
        assert isinstance(said, str)
        lengths.append(len(said))
    assert max(lengths) == 6 and len(set(lengths)) > 3


def test_the_model_is_left_as_it_was_between_events() -> None:
    lm = build()
    chat = open_chat(lm, mode="frame", seed=find(lm, Said, Shown, mode="frame"))
    lm.model.train()
    lm.model.set_attn_implementation("flex_attention")
    try:
        for _ in chat.say([TextSegment("hello")]):
            assert lm.model.training and lm.model.config._attn_implementation == "flex_attention"
            assert not torch.is_inference_mode_enabled()
    finally:
        lm.model.set_attn_implementation("sdpa")
        lm.model.eval()


def test_an_answer_that_fills_the_context_alone_ends_with_a_word_and_is_kept() -> None:
    lm = build(context=64, draws=False)
    seen = 0
    for seed in range(6):
        chat = open_chat(lm, seed=seed, max_new_tokens=100)
        say(chat, "a")
        heard: list[Event] = []
        try:
            for event in chat.say([TextSegment("b" * 50)]):
                heard.append(event)
        except ModelError as error:
            assert "the model's context has 64" in str(error)
            seen += 1
        assert [turn.role for turn in chat.turns[-2:]] == ["user", "assistant"]
        assert [part for part in answer(heard) if part] == contents(chat.turns[-1].segments)
        assert say(chat, "go on"), "it goes on"
    assert seen


def test_what_is_forgotten_is_something() -> None:
    """Also where what is remembered of an answer is shorter than what was drawn: an id of padding says nothing."""
    base = build()
    lm = build(context=64, draws=False, also=(base.tokenizer.bos_token_id, base.tokenizer.pad_token_id))
    forgotten = []
    for seed in range(12):
        chat = open_chat(lm, seed=seed, text=Sampling(top_k=12), max_new_tokens=60)
        chat.load([Turn("user", (TextSegment("a" * 12),)), Turn("assistant", (TextSegment("b" * 12),))])
        with suppress(ModelError):  # of an answer that fills the context alone
            forgotten += [event.turns for event in chat.say([TextSegment("c" * 8)]) if isinstance(event, Forgotten)]
    assert forgotten and set(forgotten) == {2}


def test_in_bfloat16_too() -> None:
    lm = build()
    chat = open_chat(lm, mode="frame", seed=find(lm, Said, Shown, mode="frame"), autocast=torch.bfloat16)
    for words in ("hello", "more"):
        say(chat, words)
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
