"""Dialogues as documents: what is asked of a model, how long they are, and models and runs that learn from them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from tests.lm.tiny import GROUPED, SHAPE, TEXT_SIZE, build_model, build_tokenizer
from tests.lm.tiny_run import DATA, MODEL, TRAINING, train
from tokvid.config import from_mapping
from tokvid.data.dialogue import Dialogue, DialogueSource, DialogueTurn
from tokvid.data.dialogues import SpriteDialogueConfig, open_dialogues
from tokvid.errors import ConfigError, DataError, ModelError
from tokvid.training_log import read_log
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.building import build_lm
from tokvid_lm.chat_documents import ChatDocuments, CodedDialogues, code_dialogues
from tokvid_lm.chat_template import CHAT_TEMPLATE
from tokvid_lm.chat_tokens import insert_chat_tokens, with_chat
from tokvid_lm.code_clips import CodedClips
from tokvid_lm.document import IGNORED, Document, DocumentWriter
from tokvid_lm.documents import Documents
from tokvid_lm.evaluation import validation_losses
from tokvid_lm.extend import extend
from tokvid_lm.mixture import Mixture, MixtureConfig
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, Turn
from tokvid_lm.templates import VideoHeader
from tokvid_lm.training import TrainedLM
from tokvid_lm.training_config import LMRecipe, TrainedModelConfig
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import CHAT_TOKENS, MODES, SPECIAL_TOKENS, Mode, VideoVocabulary
from tokvid_tokenizers import VideoCodec, load_codec

COUNT = 9
MASKED: tuple[Mode, ...] = ("maskgit", "frame")
DIALOGUES = {"kind": "sprites", "size": [16, 16], "num_frames": 5}


@functools.cache
def build() -> VideoLM:
    model = build_model("llama", max_position_embeddings=1024)
    return VideoLM.extend(model, codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), chat=True)


@functools.cache
def coded(seed: int = 0) -> CodedDialogues:
    config = SpriteDialogueConfig(size=(16, 16), num_frames=5, train=COUNT, seed=seed)
    return code_dialogues(build().codec, open_dialogues(config, "train"))


@functools.cache
def documents(seed: int = 0) -> ChatDocuments:
    return ChatDocuments(build().processor, coded(), seed=seed)


@functools.cache
def mixture(mode: Mode = "next_token", seed: int = 0) -> Mixture:
    return Mixture((MixtureConfig(objective="chat", video_mode=mode),), seed=seed)


def drawn(number: int) -> list[int]:
    """The clips of a dialogue that the assistant draws."""
    turns = [turn for turn in coded().turns[number] if turn.role == "assistant"]
    return [piece for turn in turns for piece in turn.pieces if isinstance(piece, int)]


def as_turns(number: int) -> list[Turn]:
    dialogues = coded()

    def segment(piece: str | int) -> Segment:
        if isinstance(piece, str):
            return TextSegment(piece)
        return VideoSegment(codes=dialogues.codes_of(number, piece), fps=dialogues.fps)

    return [Turn(turn.role, tuple(map(segment, turn.pieces))) for turn in dialogues.turns[number]]


def expected(number: int, *, codes: bool = True) -> tuple[list[int], list[bool]]:
    """The ids of a dialogue and which of them the assistant says; with ``codes`` off without those of its videos."""
    processor, special = build().processor, build().vocabulary.special
    ids, asked = [256], [False]
    for turn in coded().turns[number]:
        own = turn.role == "assistant"
        ids.append(special[f"<|{turn.role}|>"])
        asked.append(False)
        for piece in turn.pieces:
            if isinstance(piece, str):
                text = processor.encode_text(piece)
                ids += text
                asked += [own] * len(text)
            else:
                segment = VideoSegment(codes=coded().codes_of(number, piece), fps=coded().fps)
                video = processor.encode([segment], end=False).tolist()[1:]
                ids += video
                is_code = [token >= build().vocabulary.code_offset for token in video]
                asked += [own and (place == 0 or (code and codes)) for place, code in enumerate(is_code)]
        ids.append(special["<|end|>"])
        asked.append(own)
    return ids, asked


def labels_of(ids: Sequence[int], asked: Sequence[bool]) -> list[int]:
    """What each place is asked for: the id after it, if it is one that is asked for."""
    return [token if wanted else IGNORED for token, wanted in zip(ids[1:], asked[1:], strict=True)] + [IGNORED]


def written(number: int, mode: Mode = "next_token", sample: int | None = None) -> Document:
    return documents().document(mixture(mode), number if sample is None else sample, shuffle=False)


# Codes.


def test_every_clip_of_a_dialogue_has_its_codes() -> None:
    source = open_dialogues(SpriteDialogueConfig(size=(16, 16), num_frames=5, train=COUNT), "train")
    dialogues, codec = coded(), build().codec
    assert len(dialogues) == COUNT and dialogues.fps == 8.0
    for number in range(COUNT):
        dialogue = source.load(number)
        assert dialogues.turns[number] == dialogue.turns
        for place, clip in enumerate(dialogue.clips):
            frames = torch.from_numpy(clip.copy()).permute(3, 0, 1, 2)[None] / 127.5 - 1
            assert torch.equal(dialogues.codes_of(number, place), codec.encode(frames))
    texts = [
        p for number in range(COUNT) for turn in source.load(number).turns for p in turn.pieces if p not in range(9)
    ]
    assert dialogues.texts() == texts


def test_progress_follows_the_dialogues() -> None:
    calls: list[tuple[int, int]] = []
    source = open_dialogues(SpriteDialogueConfig(size=(16, 16), num_frames=5, train=40), "train")
    code_dialogues(build().codec, source, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(32, 40), (40, 40)]


class Words(DialogueSource):
    """Dialogues of words alone."""

    size, num_frames, fps = (16, 16), 5, 8.0

    def __len__(self) -> int:
        return 3

    def load(self, index: int) -> Dialogue:
        turns = (DialogueTurn(role="user", pieces=("hello",)), DialogueTurn(role="assistant", pieces=(f"{index}",)))
        return Dialogue(turns=turns, clips=())

    def digest(self) -> str:
        return "0" * 64


class Mixed(Words):
    """A dialogue with a clip between two of words alone."""

    def load(self, index: int) -> Dialogue:
        if index != 1:
            return super().load(index)
        clip = np.full((5, 16, 16, 3), 90, np.uint8)
        turns = (DialogueTurn(role="user", pieces=("draw",)), DialogueTurn(role="assistant", pieces=("here", 0)))
        return Dialogue(turns=turns, clips=(clip,))


def test_dialogues_of_words_alone_are_for_a_language_model_without_videos() -> None:
    with pytest.raises(DataError, match="the dialogues have no clips"):
        code_dialogues(build().codec, Words())
    mixed = ChatDocuments(build().processor, code_dialogues(build().codec, Mixed()))
    lengths = [len(mixed.document(mixture("frame"), number, shuffle=False)) for number in range(3)]
    assert lengths == [mixed.length(mixture("frame"), number, shuffle=False) for number in range(3)]
    assert lengths[0] == lengths[2] < lengths[1]
    assert mixed.dialogues.codes_of(1, 0).shape == (1, 1, 2, 2, 2)


# Whole dialogues.


@pytest.mark.parametrize("number", range(COUNT))
def test_all_that_the_assistant_says_is_asked_for_and_nothing_else(number: int) -> None:
    document = written(number)
    ids, asked = expected(number)
    assert document.ids.tolist() == ids
    assert document.labels.tolist() == labels_of(ids, asked)
    assert not document.ghost.any() and np.array_equal(document.index, np.arange(len(document)))
    assert set(document.mode[document.labels != IGNORED].tolist()) == {0}
    codes = document.labels >= build().vocabulary.code_offset
    assert int(codes.sum()) == len(drawn(number)) * 8
    assert (document.frame[codes] >= 0).all() and (document.frame[(document.labels != IGNORED) & ~codes] == -1).all()


@pytest.mark.parametrize("number", range(COUNT))
def test_a_whole_dialogue_is_what_the_processor_writes(number: int) -> None:
    lm = build()
    writer = DocumentWriter(lm.template, lm.layout)
    lm.processor.write_turns(writer, as_turns(number))
    theirs, ours = writer.finish(), written(number)
    for name in ("ids", "order", "block", "ghost", "index", "content", "cell", "start"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert (theirs.labels == IGNORED).all()


# Dialogues that end with a video.


@settings(max_examples=60, deadline=None)
@given(sample=st.integers(0, 500), mode=st.sampled_from(MASKED))
def test_a_masked_mode_ends_with_a_video_that_the_assistant_draws(sample: int, mode: Mode) -> None:
    number = sample % COUNT
    document, videos = written(number, mode, sample), drawn(number)
    ids, asked = expected(number, codes=False)
    if not videos:
        assert document.ids.tolist() == ids and document.labels.tolist() == labels_of(ids, asked)
        return
    lm, special = build(), build().vocabulary.special
    mask, opened = lm.vocabulary.mask_id, special[f"<|mode:{mode}|>"]
    (start,) = [place - 1 for place in np.flatnonzero(document.ids == opened).tolist()]
    assert document.ids[start] == lm.vocabulary.open_id
    # All before it is the dialogue as it is read, whose codes are not asked for.
    assert document.ids[: start + 1].tolist() == ids[: start + 1]
    assert document.labels[:start].tolist() == labels_of(ids, asked)[:start]
    header = VideoHeader(grid=lm.codec.grid_for(5, 16, 16), mode=mode, fps=8.0)
    length = lm.template.length(header)
    body = slice(start + len(lm.template.header(header)), start + length - 1)
    clean = np.array(ids[body])
    assert document.ids[start : body.start].tolist() == lm.template.header(header)
    assert document.ids[start + length - 1] == lm.vocabulary.close_id
    assert (document.labels[start : body.start] == IGNORED).all()
    copies = slice(start + length, None)
    assert document.ghost.tolist() == [False] * (start + length) + [True] * len(document.ids[copies])
    if mode == "maskgit":
        assert len(document) == start + length
        _check_masked(document, body, clean, mask)
        assert len(set(document.block[body].tolist())) == 1
        return
    assert document.ids[body].tolist() == clean.tolist() and (document.labels[body] == IGNORED).all()
    assert document.labels[start + length - 1] == IGNORED
    _check_masked(document, copies, clean, mask)
    assert np.array_equal(document.index[copies], document.index[body])
    assert np.array_equal(document.cell[copies], document.cell[body])
    for frame in range(2):
        part = document.frame[copies] == frame
        assert (document.ids[copies][part] == mask).any(), "every frame is learned from"
        own = set(document.block[copies][part].tolist())
        assert len(own) == 1 and own.isdisjoint(document.block[: copies.start].tolist())


def _check_masked(document: Document, part: slice, clean: Any, mask: int) -> None:
    """What is hidden is asked for at its place, and the rest stands there."""
    ids, labels = document.ids[part], document.labels[part]
    hidden = ids == mask
    assert hidden.any() and np.array_equal(np.where(hidden, labels, ids), clean)
    assert (labels[~hidden] == IGNORED).all()
    assert (clean[hidden] >= build().vocabulary.code_offset).all()


def test_every_video_that_is_drawn_ends_a_dialogue_at_times() -> None:
    number = max(range(COUNT), key=lambda number: len(drawn(number)))
    assert len(drawn(number)) > 1
    for mode in MASKED:
        lengths = [len(written(number, mode, number + COUNT * turn)) for turn in range(40)]
        assert len(set(lengths)) == len(drawn(number))
        counts = [lengths.count(length) for length in set(lengths)]
        assert min(counts) > 5


def test_masks_are_a_function_of_seed_and_sample() -> None:
    number = next(number for number in range(COUNT) if drawn(number))
    for mode in MASKED:
        one, again = written(number, mode), written(number, mode)
        assert np.array_equal(one.ids, again.ids) and np.array_equal(one.labels, again.labels)
        others = [written(number, mode, number + COUNT * turn).labels.tolist() for turn in range(8)]
        assert len({str(labels) for labels in others}) > 5
        seeded = documents().document(mixture(mode, seed=1), number, shuffle=False)
        assert seeded.labels.tolist() != one.labels.tolist()


# Lengths, orders, digests.


@settings(max_examples=100, deadline=None)
@given(sample=st.integers(0, 10_000), mode=st.sampled_from(MODES), shuffle=st.booleans())
def test_documents_are_as_long_as_said(sample: int, mode: Mode, shuffle: bool) -> None:
    document = documents().document(mixture(mode), sample, shuffle=shuffle)
    assert len(document) == documents().length(mixture(mode), sample, shuffle=shuffle)
    assert (document.labels != IGNORED).any()


def test_every_turn_through_the_dialogues_is_a_new_order() -> None:
    first = [str(written(number).ids.tolist()) for number in range(COUNT)]
    assert len(set(first)) == COUNT

    def order(seed: int, samples: Sequence[int]) -> list[int]:
        found = documents(seed)
        return [first.index(str(found.document(mixture(), n, shuffle=True).ids.tolist())) for n in samples]

    shown = order(0, range(4 * COUNT))
    passes = [tuple(shown[start : start + COUNT]) for start in range(0, 4 * COUNT, COUNT)]
    assert all(sorted(each) == list(range(COUNT)) for each in passes), "a pass shows each once"
    assert len(set(passes)) > 1 and order(1, range(4 * COUNT)) != shown
    assert order(0, [30, 2, 30, 11]) == [shown[30], shown[2], shown[30], shown[11]]
    plain = [first.index(str(written(number).ids.tolist())) for number in range(2 * COUNT)]
    assert plain == [*range(COUNT)] * 2


def test_digests_differ_where_dialogues_do() -> None:
    lm, dialogues = build(), coded()

    def digest(changed: CodedDialogues) -> str:
        return ChatDocuments(lm.processor, changed).digest()

    codes = dialogues.codes.clone()
    codes[-1, 0, -1, -1, -1] ^= 1
    turns = (*dialogues.turns[:-1], dialogues.turns[0])
    found = [digest(dialogues), digest(replace(dialogues, codes=codes)), digest(replace(dialogues, turns=turns))]
    found.append(digest(coded(1)))
    assert len(set(found)) == 4 and all(len(each) == 64 for each in found)
    assert digest(dialogues) == documents(7).digest() == found[0], "an order is not what they are"


# The context.


def entries(*modes: Mode) -> list[MixtureConfig]:
    return [MixtureConfig(objective="chat", video_mode=mode) for mode in modes]


@pytest.mark.parametrize("mode", MODES)
def test_no_dialogue_reaches_beyond_the_context_that_is_checked(mode: Mode) -> None:
    needed = max(int(written(number).index.max()) + 1 for number in range(COUNT))
    reached = max(int(written(n % COUNT, mode, n).index.max()) + 1 for n in range(5 * COUNT))
    assert reached <= needed
    documents().check_context(needed, pack=0, entries=entries(mode))
    documents().check_context(None, pack=0, entries=entries(mode))
    longest = max(range(COUNT), key=lambda number: len(written(number)))
    with pytest.raises(DataError, match=rf"dialogue {longest} takes {needed} ids but the model reads {needed - 1}"):
        documents().check_context(needed - 1, pack=0, entries=entries(mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_holds_every_dialogue_is_not_refused(mode: Mode) -> None:
    needed = max(len(written(n % COUNT, mode, n)) for n in range(12 * COUNT))
    documents().check_context(None, pack=needed + 64, entries=entries(mode))
    with pytest.raises(DataError, match=r"takes \d+ ids, a packed row holds \d+: raise training.pack"):
        documents().check_context(None, pack=needed - 1, entries=entries(mode))
    documents().check_context(None, pack=needed, entries=entries(mode))


# Beside clips.


def make_clips(codec: VideoCodec) -> CodedClips:
    codes = torch.randint(1000, (3, codec.num_codebooks, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    captions = ("a cat", "", "the little unicorn slides to the right over sand")
    return CodedClips(
        codes=codes.short(), captions=captions, num_frames=5, height=16, width=16, codebook_size=1000, rate=8.0
    )


def test_dialogues_are_a_share_of_all_documents() -> None:
    lm = build()
    mixed = (MixtureConfig(share=2.0), *entries("next_token", "frame"))
    clips = make_clips(lm.codec)
    whole = Documents(lm.processor, clips, mixture=mixed, dialogues=documents(), seed=3)
    talks = [n for n in range(400) if whole.mixture.entry(n).objective == "chat"]
    assert 150 < len(talks) < 250
    user = lm.vocabulary.special["<|user|>"]
    for sample in range(60):
        document = whole.document(sample, 1)
        assert len(document) == whole.length(sample, 1)
        assert (user in document.ids.tolist()) == (sample in talks)
        if sample in talks:  # whatever is seen of clips
            ours = documents().document(whole.mixture, sample, shuffle=True)
            assert np.array_equal(document.ids, ours.ids) and np.array_equal(document.labels, ours.labels)
    bare = Documents(lm.processor, clips, mixture=mixed[:1], seed=3)
    other = Documents(lm.processor, clips, mixture=mixed, dialogues=ChatDocuments(lm.processor, coded(1)), seed=3)
    assert len({each.digest() for each in (whole, bare, other)}) == 3
    needed = max(len(written(number)) for number in range(COUNT))
    whole.check_context(needed)
    with pytest.raises(DataError, match=r"dialogue \d+ takes"):
        whole.check_context(needed - 1)


def test_losses_of_a_chat_are_of_the_words_of_the_assistant() -> None:
    """The same from the model's own logits, document by document."""
    lm = build()
    mixed = (MixtureConfig(), *entries("next_token", "frame"))
    found = validation_losses(lm, make_clips(lm.codec), mixed, dialogues=documents(), batch_size=4)
    assert sorted(found) == ["chat", "next_token"]
    nats = []
    for number in range(COUNT):
        ids, asked = expected(number, codes=False)
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, :-1, : lm.vocabulary.code_offset].float()
        wanted = torch.tensor(asked[1:])
        nats.append(F.cross_entropy(logits[wanted], torch.tensor(ids[1:])[wanted], reduction="none"))
    assert found["chat"] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-4)
    one = validation_losses(lm, make_clips(lm.codec), entries("maskgit"), dialogues=documents())
    assert one == {"chat": pytest.approx(found["chat"], rel=1e-5)}


def test_a_model_without_turns_writes_no_dialogues(video_lm: VideoLM) -> None:
    with pytest.raises(ModelError, match="this model has no chat template"):
        ChatDocuments(video_lm.processor, coded())


# Recipes.


def chat_recipe(output: Path, *, model: dict[str, Any] | None = None, **changes: Any) -> LMRecipe:
    share = [{"objective": "next_token"}, {"objective": "chat"}, {"objective": "chat", "video_mode": "frame"}]
    data: dict[str, Any] = {
        "task": "lm",
        "output": str(output),
        "codec": "preset:tiny",
        "data": DATA,
        "dialogues": {**DIALOGUES, "train": 12, "held_out": 4},
        "model": {**MODEL, "max_positions": 512, "text_vocab_size": 400} if model is None else model,
        "training": {**TRAINING, "mixture": share},
        "evaluation": {"clips": 5},
    }
    return from_mapping(LMRecipe, {**data, **changes})


def test_recipes_have_dialogues_where_they_are_learned_from(tmp_path: Path) -> None:
    assert chat_recipe(tmp_path).chats
    with pytest.raises(ConfigError, match="has the objective chat, whose dialogues are not given: set dialogues"):
        chat_recipe(tmp_path, dialogues=None)
    plain = {**TRAINING, "mixture": [{"objective": "next_token"}]}
    with pytest.raises(ConfigError, match=r"dialogues are given, but training\.mixture has no share of the objective"):
        chat_recipe(tmp_path, training=plain)
    assert not chat_recipe(tmp_path, training=plain, dialogues=None).chats
    with pytest.raises(ConfigError, match="dialogues"):
        chat_recipe(tmp_path, dialogues={"kind": "spirtes"})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"objective": "chat", "task": "inpainting"}, "the objective chat draws no video of a task"),
        ({"objective": "chat", "file": "text.txt"}, "the objective chat reads clips, not the file"),
        ({"objective": "frame", "video_mode": "frame"}, "video_mode is for the objective chat; frame says itself"),
        ({"objective": "caption", "video_mode": "maskgit"}, "video_mode is for the objective chat"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixtureConfig(**entry)


def test_a_share_of_a_mixture_knows_its_mode() -> None:
    assert [entry.mode for entry in entries(*MODES)] == list(MODES)
    assert not any(entry.draws_video for entry in entries(*MODES))
    assert MixtureConfig(objective="caption").mode == "next_token"


@pytest.fixture(scope="module")
def trained(codec: VideoCodec, tmp_path_factory: pytest.TempPathFactory) -> TrainedLM:
    return train(chat_recipe(tmp_path_factory.mktemp("chat")), codec)


def test_a_run_with_dialogues_learns_and_saves_a_model_that_talks(trained: TrainedLM) -> None:
    assert set(trained.losses.validation) == {"next_token", "chat"}
    assert all(math.isfinite(nats) and nats > 0 for nats in trained.losses.validation.values())
    log = read_log(trained.folder.parent / "log.jsonl")
    assert len(log) == 8 and "held-out bits (chat)" in log[3] and "bits (frame)" in log[-1]
    again = VideoLM.from_pretrained(trained.folder)
    assert again.vocabulary.chats and again.vocabulary == trained.lm.vocabulary
    assert again.tokenizer.chat_template == CHAT_TEMPLATE
    assert again.processor.end_of_turn_id in again.model.generation_config.eos_token_id
    # The text tokenizer is learned from what is said, too.
    said = (
        open_dialogues(SpriteDialogueConfig(size=(16, 16), num_frames=5, train=12), "train").load(0).turns[1].pieces[0]
    )
    assert len(again.processor.encode_text(str(said))) < len(str(said)) / 2


def test_a_run_with_dialogues_goes_on_as_it_would_have(trained: TrainedLM, codec: VideoCodec, tmp_path: Path) -> None:
    other = train(chat_recipe(tmp_path), codec)
    assert other.losses == trained.losses
    theirs = other.lm.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in trained.lm.model.state_dict().items())


# Models that were trained without turns.

ROWS = {
    "none free": TEXT_SIZE,
    "one free": TEXT_SIZE + len(SPECIAL_TOKENS) + 1,
    "just enough free": TEXT_SIZE + len(SPECIAL_TOKENS) + 3,
    "many free": TEXT_SIZE + 61,
}


def build_biased(*, tied: bool, rows: int) -> PreTrainedModel:
    """A model whose head has a bias."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {**SHAPE, "vocab_size": rows, "tie_word_embeddings": tied, "initializer_range": 0.2}
    model: PreTrainedModel = PhiForCausalLM(PhiConfig(**shape))
    with torch.no_grad():
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.eval()
    return model


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", ["plain", "biased"])
def test_turns_are_new_ids_and_all_others_mean_what_they_meant(
    head: str, tied: bool, rows: str, codec: VideoCodec
) -> None:
    count = ROWS[rows]
    model = build_biased(tied=tied, rows=count) if head == "biased" else build_model("llama", tied=tied, rows=count)
    extended = extend(model, codec, tokenizer=build_tokenizer())
    old = extended.vocabulary
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(old.total_size, (3, 40), generator=generator)
    with torch.no_grad():
        before = model(ids).logits
    tables = [table.clone() for table in _tables(model)]

    new = insert_chat_tokens(model, extended.tokenizer, old)

    special = [new.special[name] for name in CHAT_TOKENS]
    first = TEXT_SIZE + len(SPECIAL_TOKENS)
    assert special == [first, first + 1, first + 2] and new.chats and new.num_actions == old.num_actions
    assert {**new.special} == {**old.special, **dict(zip(CHAT_TOKENS, special, strict=True))}
    assert new.code_offset == max(old.code_offset, first + 3)
    shift = new.code_offset - old.code_offset
    assert shift == {"none free": 3, "one free": 2}.get(rows, 0)
    assert [extended.tokenizer.convert_tokens_to_ids(name) for name in CHAT_TOKENS] == special
    assert model.config.vocab_size == new.total_size
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    def moved(numbers: torch.Tensor) -> torch.Tensor:
        return torch.where(numbers >= old.code_offset, numbers + shift, numbers)

    with torch.no_grad():
        after = model(moved(ids)).logits
    kept = [token for token in range(old.total_size) if token not in special or token >= old.code_offset]
    columns = moved(torch.tensor(kept))
    # Matrices of other widths are multiplied in other orders.
    torch.testing.assert_close(after[..., columns], before[..., kept], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(_tables(model), tables, strict=True):
        assert torch.equal(ours[columns], theirs[kept])
        mean = theirs[sorted(old.special.values())].mean(0)
        torch.testing.assert_close(ours[special], mean.expand_as(ours[special]))
    assert extended.tokenizer.chat_template == CHAT_TEMPLATE
    assert model.generation_config.eos_token_id == [257, special[2]]


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """All that has a row an id."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    return [embedding.weight, head.weight, *([] if head.bias is None else [head.bias])]


def test_turns_are_new_ids_beside_actions_and_digits(codec: VideoCodec) -> None:
    model = build_model("llama")
    extended = extend(model, codec, tokenizer=build_tokenizer(), num_actions=3, factors=(10, 100))
    new = insert_chat_tokens(model, extended.tokenizer, extended.vocabulary)
    assert (new.num_actions, new.factors, new.chats) == (3, (10, 100), True)
    assert new.all_action_ids == extended.vocabulary.all_action_ids
    again = VideoVocabulary.from_mapping(json.loads(json.dumps(new.to_mapping())))
    assert again == new
    codes = torch.arange(1000).view(1, 1, 10, 10, 10)
    assert torch.equal(new.ids_to_codes(new.codes_to_ids(codes)), codes)


def untaught(**settings: Any) -> VideoLM:
    """A model that knows no turns."""
    lm = VideoLM.extend(build_model("llama"), codec=load_codec("preset:tiny"), tokenizer=build_tokenizer(), **settings)
    lm.settings = VideoSettings(
        sampling=(Sampling(), Sampling(mode="frame", steps=3)), num_frames=5, height=16, width=16
    )
    return lm


@pytest.mark.parametrize("mode", ["next_token", "frame"])
def test_a_model_that_gets_turns_draws_what_it_drew(mode: str, tmp_path: Path) -> None:
    lm = untaught(positions="mm", layout="raster")
    prompt: list[Segment] = [TextSegment("a cat")]
    (before,) = lm.generate(prompt, mode=mode, seed=3)
    words = lm.generate([*prompt, before], output="text", top_k=1, max_new_tokens=12)
    talking = with_chat(lm)
    assert talking.settings == lm.settings and talking.positions == lm.positions
    for each in (talking, _saved(talking, tmp_path / "lm")):
        (after,) = each.generate(prompt, mode=mode, seed=3)
        assert isinstance(before, VideoSegment) and isinstance(after, VideoSegment)
        assert before.codes is not None and after.codes is not None and torch.equal(before.codes, after.codes)
        assert each.generate([*prompt, after], output="text", top_k=1, max_new_tokens=12) == words
        assert each.vocabulary.chats


def _saved(lm: VideoLM, folder: Path) -> VideoLM:
    lm.save_pretrained(folder)
    return VideoLM.from_pretrained(folder)


def test_a_run_teaches_a_trained_model_to_talk(codec: VideoCodec, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    untaught().save_pretrained(folder)
    recipe = chat_recipe(tmp_path / "run", model={"kind": "trained", "name": str(folder), "max_positions": 768})
    found = train(recipe, codec)
    again = VideoLM.from_pretrained(found.folder)
    assert again.vocabulary.chats and again.model.config.max_position_embeddings == 768
    assert set(found.losses.validation) == {"next_token", "chat"}
    assert not VideoLM.from_pretrained(folder).vocabulary.chats, "what was there is as it was"
    # One that knows turns keeps its own.
    more = chat_recipe(tmp_path / "more", model={"kind": "trained", "name": str(found.folder)})
    built = build_lm(more, codec, ())
    assert built.vocabulary == again.vocabulary
    assert built.model.generation_config.eos_token_id == again.model.generation_config.eos_token_id
    short = chat_recipe(tmp_path / "short", model={"kind": "trained", "name": str(folder)})
    with pytest.raises(DataError, match=r"dialogue \d+ takes \d+ ids but the model reads 256"):
        train(short, codec)


def test_a_model_that_is_not_to_talk_gets_no_turns(codec: VideoCodec, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    untaught().save_pretrained(folder)
    plain = {**TRAINING, "mixture": [{"objective": "next_token"}]}
    model = {"kind": "trained", "name": str(folder)}
    assert not build_lm(chat_recipe(tmp_path, model=model, training=plain, dialogues=None), codec, ()).vocabulary.chats
    talking = _saved(with_chat(untaught()), tmp_path / "talking")
    model = {"kind": "trained", "name": str(tmp_path / "talking")}
    built = build_lm(chat_recipe(tmp_path, model=model, training=plain, dialogues=None), codec, ())
    assert built.vocabulary == talking.vocabulary, "it goes on as it is"


# More positions.


def lengthened(folder: Path, positions: int | None, codec: VideoCodec) -> VideoLM:
    model: dict[str, Any] = {"kind": "trained", "name": str(folder), "max_positions": positions}
    return build_lm(chat_recipe(folder.parent / "run", model=model), codec, ())


def test_rotary_positions_go_on(codec: VideoCodec, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    untaught().save_pretrained(folder)
    plain, same, longer = (lengthened(folder, positions, codec) for positions in (None, 256, 700))
    sizes = [lm.model.config.max_position_embeddings for lm in (plain, same, longer)]
    assert sizes == [256, 256, 700]
    ids = torch.randint(256, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = longer.model(ids).logits, plain.model(ids).logits
        assert torch.equal(ours[:, :256], theirs[:, :256])
        torch.testing.assert_close(ours, theirs)
        again = _saved(longer, tmp_path / "longer")
        assert again.model.config.max_position_embeddings == 700
        assert torch.equal(again.model.eval()(ids).logits, ours)
    text = longer.generate([TextSegment("a" * 400)], output="text", max_new_tokens=3)
    assert len(text) == 1
    with pytest.raises(ModelError, match="context has 256"):
        plain.generate([TextSegment("a" * 400)], output="text", max_new_tokens=3)


@pytest.mark.parametrize("positions", [255, 1])
def test_a_model_is_not_shortened(positions: int, codec: VideoCodec, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    untaught().save_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"model.max_positions is {positions}, the model .* reads 256 already"):
        lengthened(folder, positions, codec)


@pytest.mark.parametrize("kind", ["learned", "scaled"])
def test_other_positions_do_not_go_on(kind: str, codec: VideoCodec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "learned":
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(vocab_size=TEXT_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=256)
        )
    else:
        scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
        shape: dict[str, Any] = {**GROUPED, "vocab_size": TEXT_SIZE, "rope_parameters": scaled}
        model = LlamaForCausalLM(LlamaConfig(**shape))
    folder = tmp_path / "lm"
    VideoLM.extend(model.eval(), codec=codec, tokenizer=build_tokenizer()).save_pretrained(folder)
    with pytest.raises(ConfigError, match="has no plain rotary positions, which alone go on without new weights"):
        lengthened(folder, 512, codec)
    assert lengthened(folder, None, codec).vocabulary.chats


@pytest.mark.parametrize("positions", [0, -4])
def test_a_model_reads_something(positions: int) -> None:
    with pytest.raises(ConfigError, match=f"max_positions must be at least 1, got {positions}"):
        TrainedModelConfig(name="lm", max_positions=positions)
