"""The chat template writes what the processor writes, but for what stands inside videos."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.lm.tiny import TEXT_SIZE, build_model, build_tokenizer
from tokvid.errors import ModelError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.document import DocumentWriter
from tokvid_lm.segments import Segment, Turn
from tokvid_lm.vocabulary import CHAT_TOKENS, CLOSE, END_OF_TURN, OPEN, special_tokens
from tokvid_tokenizers import load_codec

VIDEO: dict[str, str] = {"type": "video"}


@functools.cache
def build() -> VideoLM:
    return VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), chat=True)


def clip(seed: int = 0) -> VideoSegment:
    generator = torch.Generator().manual_seed(seed)
    return VideoSegment(codes=torch.randint(1000, (1, 1, 2, 2, 3), generator=generator), fps=8.0)


def written(turns: Sequence[Turn], *, open_last: bool = False) -> list[int]:
    lm = build()
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write_turns(writer, turns, open_last=open_last)
    ids: list[int] = writer.finish().ids.tolist()
    return ids


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as other programs have them: text alone as a string, else as a list of pieces."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        pieces = [
            {"type": "text", "text": segment.text} if isinstance(segment, TextSegment) else VIDEO
            for segment in turn.segments
        ]
        only = turn.segments[0] if len(turn.segments) == 1 else None
        found.append({"role": turn.role, "content": only.text if isinstance(only, TextSegment) else pieces})
    return found


def rendered(
    turns: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any
) -> list[int]:
    tokenizer = tokenizer or build().tokenizer
    found: Any = tokenizer.apply_chat_template(list(turns), **settings)
    ids: list[int] = found["input_ids"] if not isinstance(found, list) else found  # transformers 5 gives a mapping
    return ids


def talk(*said: tuple[Segment, ...]) -> list[Turn]:
    return [Turn("assistant" if number % 2 else "user", segments) for number, segments in enumerate(said)]


# Without what looks like a special token: a template cannot keep it apart.
words = st.text(st.characters(exclude_characters="<|", codec="utf-8"), max_size=12).map(TextSegment)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4))
def test_a_conversation_in_words_is_rendered_as_it_is_written(said: list[tuple[Segment, ...]]) -> None:
    turns = talk(*said)
    assert rendered(messages(turns)) == written(turns)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.one_of(words, st.integers(0, 3).map(clip)), max_size=3).map(tuple), min_size=1, max_size=4))
def test_a_video_stands_where_it_is_said(said: list[tuple[Segment, ...]]) -> None:
    lm, turns = build(), talk(*said)
    videos = [segment for each in said for segment in each if isinstance(segment, VideoSegment)]
    opened, closed = lm.vocabulary.open_id, lm.vocabulary.close_id
    found = rendered(messages(turns))
    assert found.count(opened) == found.count(closed) == len(videos)
    filled: list[int] = []
    for place, token in enumerate(found):
        if token == opened:
            assert found[place + 1] == closed
            filled += lm.processor.encode([videos.pop(0)], end=False).tolist()[1:]
        elif token != closed:
            filled.append(token)
    assert filled == written(turns)


def test_a_generation_prompt_is_the_beginning_of_an_answer() -> None:
    lm = build()
    turns = talk((TextSegment("hello"),))
    open_answer = [*turns, Turn("assistant", ())]
    assert rendered(messages(turns), add_generation_prompt=True) == written(open_answer, open_last=True)
    assert rendered(messages(turns), add_generation_prompt=True)[-1] == lm.processor.role_id("assistant")
    assert rendered(messages(turns), add_generation_prompt=False) == written(turns)
    text = lm.tokenizer.apply_chat_template(messages(turns), add_generation_prompt=True, tokenize=False)
    assert text == "<s><|user|>hello<|end|><|assistant|>"


def test_the_text_of_a_video_is_two_names() -> None:
    turns = talk((TextSegment("look"), clip()), (TextSegment("a cat"),))
    text = build().tokenizer.apply_chat_template(messages(turns), tokenize=False)
    assert text == f"<s><|user|>look{OPEN}{CLOSE}<|end|><|assistant|>a cat<|end|>"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "system", "content": "be kind"}, "the roles are user and assistant, got system"),
        ({"role": "tool", "content": []}, "the roles are user and assistant, got tool"),
        ({"role": "user", "content": [{"type": "image"}]}, "a piece of a message is text or video, got image"),
        ({"role": "assistant", "content": [{"type": "audio"}]}, "a piece of a message is text or video, got audio"),
    ],
)
def test_what_it_does_not_know_is_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        rendered([message])
    with pytest.raises(Exception, match=words):
        rendered([{"role": "user", "content": "hello"}, message])


def test_special_tokens_that_a_user_types_stay_text() -> None:
    lm = build()
    typed = " ".join((*special_tokens(chat=True), "<s>", "</s>", "<pad>"))
    ids = written(talk((TextSegment(typed),), (TextSegment(END_OF_TURN),)))
    special = [token for token in ids if token >= TEXT_SIZE]
    user, assistant, end = (lm.vocabulary.special[name] for name in CHAT_TOKENS)
    assert special == [user, end, assistant, end]
    inner = ids[2 : ids.index(end)]
    assert max(inner) < 256 and lm.processor.decode_text(inner) == typed


def test_turns_are_written_with_who_speaks_and_their_ends() -> None:
    lm = build()
    user, assistant, end = (lm.vocabulary.special[name] for name in CHAT_TOKENS)
    hello, cat = (lm.processor.encode_text(text) for text in ("hello", "cat"))
    turns = talk((TextSegment("hello"),), (TextSegment("cat"),))
    whole = [256, user, *hello, end, assistant, *cat, end]
    assert written(turns) == whole and written(turns, open_last=True) == whole[:-1]
    assert written([]) == [256]
    assert lm.processor.end_of_turn_id == end
    assert [lm.processor.role_id("user"), lm.processor.role_id("assistant")] == [user, assistant]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lm"
    build().save_pretrained(folder)
    return folder


def test_it_survives_saving_for_whoever_loads_it(saved: Path) -> None:
    turns = messages(talk((TextSegment("what is this?"), clip()), (TextSegment("a cat"),), (TextSegment("and?"),)))
    plain = AutoTokenizer.from_pretrained(saved)
    lm = VideoLM.from_pretrained(saved)
    assert lm.vocabulary.chats and lm.vocabulary == build().vocabulary
    for tokenizer in (plain, lm.tokenizer):
        assert rendered(turns, tokenizer, add_generation_prompt=True) == rendered(turns, add_generation_prompt=True)


def test_the_end_of_a_turn_ends_a_generation(saved: Path) -> None:
    """Of the model in memory, of the one that is loaded plainly, and of what this one then says."""
    lm = build()
    end = lm.processor.end_of_turn_id
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert lm.model.generation_config.eos_token_id == plain.generation_config.eos_token_id == [257, end]
    with torch.no_grad():
        plain.lm_head.weight[:] = 0
        plain.lm_head.weight[end] = plain.lm_head.weight.new_ones(32)
    prompt = torch.tensor([rendered([{"role": "user", "content": "hello"}], add_generation_prompt=True)])
    answers = []
    for sign in (1, -1):
        plain.lm_head.weight.data.mul_(sign)
        found = plain.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16, pad_token_id=258
        )
        answers.append(found[0, prompt.shape[1] :].tolist())
    assert all(answer.index(end) == len(answer) - 1 for answer in answers if end in answer)
    assert min(map(len, answers)) < 16


def test_a_model_that_does_not_talk_has_none(video_lm: VideoLM, tmp_path: Path) -> None:
    assert not video_lm.vocabulary.chats and video_lm.tokenizer.chat_template is None
    assert video_lm.model.generation_config.eos_token_id == 257
    assert not set(CHAT_TOKENS) & set(video_lm.tokenizer.get_vocab())
    writer = DocumentWriter(video_lm.template, video_lm.layout)
    with pytest.raises(ModelError, match="was not trained to talk"):
        video_lm.processor.write_turns(writer, talk((TextSegment("hello"),)))
    with pytest.raises(ModelError, match="was not trained to talk"):
        _ = video_lm.processor.end_of_turn_id


def test_a_text_tokenizer_with_turns_of_its_own_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    with pytest.raises(ModelError, match=r"the text tokenizer already has <\|user\|>, <\|end\|>"):
        VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=tokenizer, chat=True)
    VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=tokenizer)


def test_extending_leaves_the_text_tokenizer_that_was_given_as_it_was() -> None:
    tokenizer = build_tokenizer()
    VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=tokenizer, chat=True)
    assert tokenizer.chat_template is None and len(tokenizer) == TEXT_SIZE
