"""Documents are what the processor writes; batches hold every scored id once; samples depend on their number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokvid.data.clips import ClipArray, SpriteDataConfig, materialise, open_clips
from tokvid.errors import ConfigError, DataError, ShapeError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.code_clips import CodedClips, code_clips, codes_dtype, encode_clips
from tokvid_lm.collate import IGNORED, Batch, BatchPlan, Collator, Documents
from tokvid_lm.training_config import CurriculumStage, LMTrainingConfig
from tokvid_tokenizers import VideoCodec

CAPTIONS = ("a cat", "", "the little unicorn slides to the right over sand")


@pytest.fixture(scope="module")
def clips(codec: VideoCodec) -> CodedClips:
    codes = torch.randint(0, codec.codebook_size, (3, codec.num_codebooks, 2, 2, 3), dtype=torch.int16)
    return CodedClips(
        codes=codes, captions=CAPTIONS, num_frames=5, height=16, width=24, codebook_size=codec.codebook_size
    )


@pytest.fixture(scope="module")
def documents(video_lm: VideoLM, clips: CodedClips) -> Documents:
    return Documents.build(video_lm.processor, clips)


@pytest.mark.parametrize("number", range(3))
def test_a_document_is_what_the_processor_writes(
    video_lm: VideoLM, clips: CodedClips, documents: Documents, number: int
) -> None:
    video = VideoSegment(codes=clips.codes[number : number + 1].long())
    expected = video_lm.processor.encode([TextSegment(CAPTIONS[number]), video])
    assert documents.ids(number).tolist() == expected.tolist()
    assert documents.longest == len(documents.ids(2))


@pytest.mark.parametrize("score_text", [False, True])
def test_a_batch_pads_on_the_right_and_scores_what_is_not_forced(
    video_lm: VideoLM, documents: Documents, score_text: bool
) -> None:
    batch = documents.batch([2, 0, 1], score_text=score_text)
    offset, eos = video_lm.vocabulary.code_offset, video_lm.tokenizer.eos_token_id
    for row, labels, number in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), [2, 0, 1], strict=True):
        ids = documents.ids(number).tolist()
        last_code = max(place for place, token in enumerate(ids) if token >= offset)
        kept = ids if score_text else ids[: last_code + 1]
        assert row == (kept + [documents.pad_id] * len(row))[: len(row)]
        text = documents.caption(number).tolist()
        expected = (text if score_text else []) + [i for i in ids if i >= offset] + ([eos] if score_text else [])
        assert [label for label in labels if label != IGNORED] == expected
        assert all(label in (IGNORED, token) for label, token in zip(labels, row, strict=True))
        assert labels[0] == IGNORED, "the first id of a document is predicted by nothing"
    assert (batch["labels"][:, -1] != IGNORED).any(), "a column after the last scored one is wasted"


def test_a_dropped_caption_leaves_the_null_prompt(video_lm: VideoLM, clips: CodedClips, documents: Documents) -> None:
    batch = documents.batch([2, 0], dropped=[True, False])
    null = video_lm.processor.null_prompt(clips.grid).tolist()
    assert batch["input_ids"][0, : len(null)].tolist() == null
    assert batch["input_ids"][0, len(null) : len(null) + 17].tolist() == documents.body[2, :17].tolist()
    prompt = video_lm.encode_prompt([TextSegment(CAPTIONS[0])], clips.grid).tolist()
    assert batch["input_ids"][1, : len(prompt)].tolist() == prompt


def test_samples_depend_on_their_number_alone(documents: Documents) -> None:
    def collator(seed: int = 0) -> Collator:
        return Collator(documents, seed=seed, prompt_drop=0.25, score_text=False)

    ours = collator()
    order = [ours.document_of(sample) for sample in range(30)]
    assert all(sorted(order[start : start + 3]) == [0, 1, 2] for start in range(0, 30, 3)), "a pass shows each once"
    assert [collator().document_of(sample) for sample in reversed(range(30))] == order[::-1]
    assert len({tuple(order[start : start + 3]) for start in range(0, 30, 3)}) > 1, "every pass has the same order"
    assert [collator(1).document_of(sample) for sample in range(30)] != order
    dropped = ours.dropped(range(4000))
    assert dropped[100:110] == collator().dropped(range(100, 110))
    assert 0.22 < np.mean(dropped) < 0.28
    whole = ours([Batch(samples=range(4, 8), latent_frames=None)])
    later = collator()([Batch(samples=range(6, 8), latent_frames=None)])
    width = later["labels"].shape[1]
    assert torch.equal(whole["labels"][2:, :width], later["labels"])


def test_a_curriculum_shows_beginnings_first_and_every_sample_once(documents: Documents) -> None:
    stages = (CurriculumStage(steps=2, latent_frames=1, batch_size=5),)
    plan = BatchPlan(LMTrainingConfig(steps=4, warmup_steps=1, batch_size=3, curriculum=stages), passes=2)
    batches = [plan[number] for number in range(len(plan))]
    assert [len(batch.samples) for batch in batches] == [5, 5, 5, 5, 3, 3, 3, 3]
    assert [sample for batch in batches for sample in batch.samples] == list(range(32))
    assert [batch.latent_frames for batch in batches] == [1] * 4 + [None] * 4
    with pytest.raises(IndexError):
        plan[8]
    with pytest.raises(ConfigError, match="more steps than the run"):
        LMTrainingConfig(steps=2, warmup_steps=1, curriculum=(*stages, *stages))


@pytest.mark.parametrize("score_text", [False, True])
def test_a_beginning_of_a_document_is_cut_after_a_latent_frame(documents: Documents, score_text: bool) -> None:
    whole = documents.batch([2, 0], score_text=score_text)
    cut = documents.batch([2, 0], score_text=score_text, latent_frames=1)
    for row, short in zip(whole["input_ids"], cut["input_ids"], strict=True):
        kept = int((short != documents.pad_id).sum())
        assert torch.equal(short[:kept], row[:kept])
    codes = documents.body[[2, 0]][:, documents.is_code]
    scored = [row[row != IGNORED].tolist()[-6:] for row in cut["labels"]]
    assert scored == codes[:, :6].tolist(), "a latent frame is 2x3 codes"
    assert documents.batch([1], latent_frames=2)["labels"].tolist() == documents.batch([1])["labels"].tolist()
    for beyond in (0, 3):
        with pytest.raises(ShapeError, match=f"1 to 2 can be seen, got {beyond}"):
            documents.batch([1], latent_frames=beyond)


def test_too_long_a_document_is_named(documents: Documents) -> None:
    documents.check_context(None)
    documents.check_context(documents.longest)
    with pytest.raises(DataError, match=r"takes \d+ ids but the model reads 20.*caption 2"):
        documents.check_context(20)
    with pytest.raises(ShapeError, match="at least one document"):
        documents.batch([])


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
    assert (streamed.num_frames, streamed.height, streamed.width) == (5, 16, 16)
    assert streamed.codes.dtype == torch.int16
    assert torch.equal(encode_clips(codec, array.frames, batch_size=3), streamed.codes)
    assert streamed.grid == codec.grid_for(5, 16, 16)


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
