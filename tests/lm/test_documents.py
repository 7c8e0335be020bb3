"""Samples of a run: what they show is a function of their number, as long as was said, and what the processor
writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.data.clips import ClipArray, SpriteDataConfig, materialise, open_clips
from tokvid.errors import ConfigError, DataError, ShapeError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.batch_plan import Batch
from tokvid_lm.code_clips import CodedClips, code_clips, codes_dtype, encode_clips
from tokvid_lm.collate import Collator
from tokvid_lm.document import IGNORED, Document
from tokvid_lm.documents import Documents
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.tasks import VIDEO_TASKS
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import VideoCodec

CAPTIONS = ("a cat", "", "the little unicorn slides to the right over sand")
EVERY_MIXTURE = (
    *(MixtureConfig(objective=mode, task=task) for mode in MODES for task in VIDEO_TASKS),
    MixtureConfig(objective="caption"),
    MixtureConfig(objective="text"),
)


def make_clips(codec: VideoCodec) -> CodedClips:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(codec.codebook_size, (3, codec.num_codebooks, 3, 2, 3), generator=generator)
    return CodedClips(
        codes=codes.short(), captions=CAPTIONS, num_frames=9, height=16, width=24, codebook_size=1000, rate=8.0
    )


@pytest.fixture(scope="module")
def clips(codec: VideoCodec) -> CodedClips:
    return make_clips(codec)


@pytest.mark.parametrize("number", range(3))
def test_a_document_is_what_the_processor_writes(video_lm: VideoLM, clips: CodedClips, number: int) -> None:
    video = VideoSegment(codes=clips.codes_of(number)[None], fps=8.0)
    expected = video_lm.processor.encode([TextSegment(CAPTIONS[number]), video])
    documents = Documents(video_lm.processor, clips, score_text=True, shuffle=False)
    document = documents.document(number)
    assert document.ids.tolist() == expected.tolist()
    text = len(documents.caption(number))
    labels = document.labels[document.labels != IGNORED].tolist()
    codes = [token for token in expected.tolist() if token >= video_lm.vocabulary.code_offset]
    assert labels == [*expected.tolist()[1 : 1 + text], *codes, video_lm.tokenizer.eos_token_id]
    bare = Documents(video_lm.processor, clips, shuffle=False).document(number)
    assert bare.labels[bare.labels != IGNORED].tolist() == codes


@settings(max_examples=60, deadline=None)
@given(
    sample=st.integers(0, 10_000),
    entry=st.sampled_from(EVERY_MIXTURE),
    latent_frames=st.one_of(st.none(), st.integers(1, 3)),
    score_text=st.booleans(),
)
def test_documents_are_as_long_as_said(
    video_lm: VideoLM, sample: int, entry: MixtureConfig, latent_frames: int | None, score_text: bool
) -> None:
    documents = Documents(
        video_lm.processor, make_clips(video_lm.codec), mixture=(entry,), prompt_drop=0.3, score_text=score_text
    )
    document = documents.document(sample, latent_frames)
    assert len(document) == documents.length(sample, latent_frames)
    assert (document.labels != IGNORED).any() or entry.objective in ("caption", "text"), "it teaches something"


def test_samples_depend_on_their_number_alone(video_lm: VideoLM, clips: CodedClips) -> None:
    mixture = (
        MixtureConfig(objective="next_token"),
        MixtureConfig(objective="maskgit", task="inpainting", share=2.0),
        MixtureConfig(objective="frame"),
    )

    def documents(seed: int = 0) -> Documents:
        return Documents(video_lm.processor, clips, mixture=mixture, prompt_drop=0.25, seed=seed)

    ours, again = documents(), documents()
    order = [ours.clip_of(sample) for sample in range(30)]
    assert all(sorted(order[start : start + 3]) == [0, 1, 2] for start in range(0, 30, 3)), "a pass shows each once"
    assert [again.clip_of(sample) for sample in reversed(range(30))] == order[::-1]
    assert len({tuple(order[start : start + 3]) for start in range(0, 30, 3)}) > 1, "every pass has the same order"
    assert [documents(1).clip_of(sample) for sample in range(30)] != order
    for sample in (0, 7, 29):
        one, other = ours.document(sample), again.document(sample)
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.labels, other.labels)
    entries = [ours.mixture.entry(sample).objective for sample in range(2000)]
    shares = [entries.count(mode) / 2000 for mode in MODES]
    assert np.allclose(shares, [0.25, 0.5, 0.25], atol=0.04)
    assert 0.22 < np.mean([ours.mixture.drops_caption(sample, 0.25) for sample in range(4000)]) < 0.28


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_part_of_the_samples_shows_clips_of_its_own(parts: int, video_lm: VideoLM) -> None:
    clips = make_clips(video_lm.codec)
    documents = Documents(video_lm.processor, clips, seed=1, parts=parts)
    shown = [[documents.clip_of(sample) for sample in range(part, 240, parts)] for part in range(parts)]
    assert sorted(clip for part in shown for clip in set(part)) == list(range(len(clips))), "each clip is of one part"
    for part in shown:
        assert set(part) == set(range(min(part), max(part) + 1)), "a stretch, as clips lie in shards"
        size = len(set(part))
        assert all(len(set(part[start : start + size])) == size for start in range(0, len(part) - size + 1, size))


def test_a_dropped_caption_leaves_the_null_prompt(video_lm: VideoLM, clips: CodedClips) -> None:
    document = Documents(video_lm.processor, clips, prompt_drop=1.0, shuffle=False).document(2)
    alone = Documents(video_lm.processor, clips, shuffle=False).document(1)
    first = int(np.flatnonzero(document.content)[0])
    assert document.ids[:first].tolist() == alone.ids[:first].tolist(), "clip 1 has no caption"


def test_passages_of_a_text_are_learned_from_beside_videos(
    video_lm: VideoLM, clips: CodedClips, tmp_path: Path
) -> None:
    text = "".join(f"sentence {number}. " for number in range(200))
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    mixture = (MixtureConfig(), MixtureConfig(objective="text", file=str(file), passage=40))
    documents = Documents(video_lm.processor, clips, mixture=mixture, seed=4)
    passages = [n for n in range(60) if documents.mixture.entry(n).file]
    assert 15 < len(passages) < 45
    starts = set()
    for sample in passages:
        document = documents.document(sample, 1)
        assert len(document) == documents.length(sample, 1) == 41
        # Every id is asked for, of the one before it, and no end is written in the middle of a text.
        assert document.labels[:-1].tolist() == document.ids[1:].tolist() and document.labels[-1] == IGNORED
        written = video_lm.tokenizer.decode(document.ids[1:].tolist())
        assert written in text
        starts.add(text.index(written))
    assert len(starts) > len(passages) // 2, "they start anywhere"
    again = Documents(video_lm.processor, clips, mixture=mixture, seed=4)
    assert again.document(passages[0]).ids.tolist() == documents.document(passages[0]).ids.tolist()
    digest = documents.digest()
    file.write_text(text.upper(), encoding="utf-8")
    assert Documents(video_lm.processor, clips, mixture=mixture, seed=4).digest() != digest


def test_a_text_that_cannot_be_read_is_named(video_lm: VideoLM, clips: CodedClips, tmp_path: Path) -> None:
    def read(name: str, content: bytes | None, passage: int = 40) -> Documents:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        entry = MixtureConfig(objective="text", file=str(tmp_path / name), passage=passage)
        return Documents(video_lm.processor, clips, mixture=(entry,))

    with pytest.raises(DataError, match=r"cannot read the text .*none\.txt: No such file"):
        read("none.txt", None)
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text: byte 3"):
        read("latin.txt", b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"short\.txt has 9 ids and a passage 40"):
        read("short.txt", b"too short")
    with pytest.raises(DataError, match="passages of 300 ids"):
        read("long.txt", b"word " * 100, passage=300).check_context(256)


def test_masked_shares_follow_the_schedule(video_lm: VideoLM, clips: CodedClips) -> None:
    documents = Documents(video_lm.processor, clips, mixture=(MixtureConfig(objective="maskgit"),))
    counts = np.array([(documents.document(sample).labels != IGNORED).sum() for sample in range(400)])
    assert counts.min() >= 1 and counts.max() == 18
    # The mean of cos(pi/2 u) is 2/pi; rounding up adds half a cell.
    assert abs(counts.mean() / 18 - 2 / np.pi - 0.5 / 18) < 0.04


def test_a_batch_pads_on_the_right_and_packs_documents_side_by_side(video_lm: VideoLM, clips: CodedClips) -> None:
    documents = Documents(video_lm.processor, clips, shuffle=False)
    collator = Collator(documents, pad_id=258, positions=video_lm.positions)
    batch = collator([Batch(rows=((2, 0), (1,)))])
    one, two, three = (documents.document(number) for number in (2, 0, 1))

    def fields(row: int, span: slice) -> list[list[int]]:
        return [batch[name][row, span].tolist() for name in ("input_ids", "labels", "order", "position_ids")]

    def of(document: Document) -> list[list[int]]:
        return [column.tolist() for column in (document.ids, document.labels, document.order, document.index)]

    assert fields(0, slice(0, len(one))) == of(one)
    assert fields(0, slice(len(one), None)) == of(two)
    assert fields(1, slice(0, len(three))) == of(three)
    assert set(batch["input_ids"][1, len(three) :].tolist()) == {258}
    assert set(batch["labels"][1, len(three) :].tolist()) == {IGNORED}
    assert batch["document"][0].unique().tolist() == [0, 1] and batch["document"][1].unique().tolist() == [-1, 0]
    with pytest.raises(ShapeError, match="at least one document"):
        collator([Batch(rows=())])


@pytest.mark.parametrize("entry", EVERY_MIXTURE, ids=lambda entry: f"{entry.objective}-{entry.task}")
def test_no_document_reaches_beyond_the_context_that_is_checked(
    video_lm: VideoLM, clips: CodedClips, entry: MixtureConfig
) -> None:
    documents = Documents(video_lm.processor, clips, mixture=(entry,), score_text=True, shuffle=False)
    needed = max(int(documents.document(number).index.max()) + 1 for number in range(24))
    with pytest.raises(DataError, match="but the model reads"):
        documents.check_context(needed - 1)


@pytest.mark.parametrize("entry", EVERY_MIXTURE, ids=lambda entry: f"{entry.objective}-{entry.task}")
def test_a_row_that_holds_every_document_is_not_refused(
    video_lm: VideoLM, clips: CodedClips, entry: MixtureConfig
) -> None:
    documents = Documents(video_lm.processor, clips, mixture=(entry,), shuffle=False)
    needed = max(len(documents.document(number)) for number in range(24))
    documents.check_context(None, pack=needed)
    if entry.task == "text_to_video":  # which all documents of the longest clip are
        with pytest.raises(
            DataError, match=f"takes {needed} ids, a packed row holds {needed - 1}: raise training.pack"
        ):
            documents.check_context(None, pack=needed - 1)


def test_too_long_a_document_is_named(video_lm: VideoLM, clips: CodedClips) -> None:
    documents = Documents(video_lm.processor, clips, score_text=True, shuffle=False)
    documents.check_context(None)
    documents.check_context(len(documents.document(2)))
    with pytest.raises(DataError, match=r"takes \d+ ids but the model reads 20.*caption 2"):
        documents.check_context(20)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"objective": "caption", "task": "inpainting"}, "draws no video"),
        ({"share": 0.0}, "share"),
        ({"weight": -1.0}, "weight"),
        ({"file": "text.txt"}, "reads clips, not the file"),
        ({"objective": "text", "file": "text.txt", "passage": 1}, "passage"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(entry: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixtureConfig(**entry)  # type: ignore[arg-type]


def test_a_source_gives_the_codes_of_its_clips(codec: VideoCodec) -> None:
    config = SpriteDataConfig(size=(16, 16), num_frames=5, train_clips=7)
    array = materialise(open_clips(config, "train"))
    calls: list[tuple[int, int]] = []
    streamed = code_clips(
        codec, open_clips(config, "train"), batch_size=3, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]
    in_memory = code_clips(codec, array, batch_size=3)
    assert torch.equal(streamed.codes, in_memory.codes)
    assert streamed.captions == tuple(array.captions) == in_memory.captions
    assert (streamed.num_frames, streamed.height, streamed.width, streamed.fps) == (5, 16, 16, 8.0)
    assert streamed.codes.dtype == torch.int16
    assert torch.equal(encode_clips(codec, array.frames, batch_size=3), streamed.codes)
    assert streamed.grid == codec.grid_for(5, 16, 16)
    assert streamed.digest() == in_memory.digest()


def test_what_cannot_be_encoded_is_refused(codec: VideoCodec) -> None:
    frames = np.zeros((2, 5, 16, 16, 3), np.float32)
    with pytest.raises(ShapeError, match="uint8"):
        encode_clips(codec, frames)  # type: ignore[arg-type]
    empty = ClipArray(
        frames=np.zeros((0, 5, 16, 16, 3), np.uint8), fps=8.0, captions=[], names=[], skipped=[("a.mp4", "is torn")]
    )
    with pytest.raises(DataError, match=r"a\.mp4: is torn"):
        code_clips(codec, empty)
    assert [codes_dtype(size) for size in (256, 257, 32768, 32769)] == [
        torch.uint8,
        torch.int16,
        torch.int16,
        torch.int32,
    ]
