"""Documents to ids and back; what a user types is text, whatever it spells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import TEXT_SIZE, build_model, build_tokenizer
from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.templates import CODE, VideoHeader
from tokvid_lm.vocabulary import SPECIAL_TOKENS
from tokvid_tokenizers import VideoCodec

BOS, EOS = 256, 257


def _codes(grid: Grid, seed: int = 0) -> torch.Tensor:
    return torch.randint(1000, (1, 1, grid.t, grid.h, grid.w), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
            st.builds(Grid, t=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 12)),
        ),
        max_size=5,
    )
)
def test_documents_survive_the_round_trip(video_lm: VideoLM, parts: list[str | Grid]) -> None:
    document = [TextSegment(p) if isinstance(p, str) else VideoSegment(codes=_codes(p)) for p in parts]
    again = video_lm.processor.decode(video_lm.processor.encode(document))
    expected: list[str | torch.Tensor] = []
    for segment in document:  # texts side by side become one
        if isinstance(segment, VideoSegment):
            assert segment.codes is not None
            expected.append(segment.codes)
        elif expected and isinstance(expected[-1], str):
            expected[-1] += segment.text
        else:
            expected.append(segment.text)
    assert len(again) == len(expected)
    for segment, value in zip(again, expected, strict=True):
        if isinstance(segment, VideoSegment):
            assert isinstance(value, torch.Tensor)
            assert segment.codes is not None
            assert torch.equal(segment.codes, value)
        else:
            assert segment.text == value


def test_a_document_reads_bos_text_video_eos(video_lm: VideoLM) -> None:
    grid = Grid(t=2, h=3, w=10)
    ids = video_lm.processor.encode([TextSegment("hi"), VideoSegment(codes=_codes(grid))]).tolist()
    special = video_lm.vocabulary.special
    text = video_lm.processor.encode_text("hi")
    names = ["<|video|>", "<|mode:next_token|>", "<|2|>", "<|x|>", "<|3|>", "<|x|>", "<|1|>", "<|0|>", "<|codes|>"]
    header = [special[name] for name in names]
    assert ids[: 1 + len(text) + len(header)] == [BOS, *text, *header]
    assert ids[-2:] == [special["<|/video|>"], EOS]
    body = video_lm.template.body(VideoHeader(grid=grid)).ids
    assert len(ids) == 1 + 2 + len(header) + len(body) + 2
    is_code = torch.tensor(ids[12:-2]) >= video_lm.vocabulary.code_offset
    assert torch.equal(is_code, body == CODE) and int(is_code.sum()) == 60


@pytest.mark.parametrize("word", [*SPECIAL_TOKENS, "<s>", "</s>", "<pad>"])
def test_special_tokens_spelled_in_text_stay_text(video_lm: VideoLM, word: str) -> None:
    caption = f"a{word}b {word}"
    ids = video_lm.processor.encode_text(caption)
    assert ids == list(
        video_lm.processor.tokenizer.encode(caption, add_special_tokens=False, split_special_tokens=True)
    )
    assert max(ids) < BOS < TEXT_SIZE  # bytes only
    assert video_lm.processor.decode(ids) == [TextSegment(caption)]
    # The plain call would have made ids of them, so the option is what protects us.
    assert max(video_lm.tokenizer.encode(caption, add_special_tokens=False)) >= BOS


def test_frames_are_encoded_by_the_codec(video_lm: VideoLM) -> None:
    frames = torch.rand(1, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = video_lm.codec.encode(frames)
    from_frames = video_lm.processor.encode([VideoSegment(frames=frames)])
    assert torch.equal(from_frames, video_lm.processor.encode([VideoSegment(codes=codes)]))
    dressed = video_lm.template.build(video_lm.processor.code_ids(codes), VideoHeader(grid=Grid(t=2, h=2, w=3)))
    assert torch.equal(dressed[0], from_frames[1:-1])


def test_prompts_stop_before_the_first_code(video_lm: VideoLM) -> None:
    grid = Grid(t=2, h=2, w=2)
    header = VideoHeader(grid=grid)
    whole = video_lm.processor.encode([TextSegment("hi"), VideoSegment(codes=_codes(grid))])
    prompt = video_lm.processor.encode_prompt([TextSegment("hi")], header)
    assert torch.equal(prompt, whole[: len(prompt)])
    first_code = len(prompt) + int((video_lm.template.body(header).ids == CODE).nonzero()[0])
    assert int(whole[first_code]) >= video_lm.vocabulary.code_offset > int(whole[:first_code].max())


def test_actions_and_rate_stand_in_a_video_and_come_back(codec: VideoCodec) -> None:
    lm = VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), num_actions=3)
    grid = Grid(t=3, h=1, w=1)  # frames 0, 1 to 4 and 5 to 8
    actions = torch.tensor([0, 1, 2, 0, 1, 2])
    segment = VideoSegment(codes=_codes(grid), num_frames=7, fps=12.5, actions=actions)
    (again,) = lm.processor.decode(lm.processor.encode([segment]))
    assert isinstance(again, VideoSegment) and again.codes is not None and again.actions is not None
    assert torch.equal(again.codes, _codes(grid)) and again.fps == 12.5
    assert again.actions.tolist() == [0, 1, 2, 0, 1, 2, 2, 2], "the last group is filled like the last frames"
    with pytest.raises(ShapeError, match="7 frames has 6 actions, one from each frame to the next, got 5"):
        lm.processor.encode([VideoSegment(codes=_codes(grid), num_frames=7, actions=actions[:5])])
    with pytest.raises(ModelError, match=r"actions must lie in \[0, 3\), got values from 0 to 3"):
        lm.processor.encode([VideoSegment(codes=_codes(grid), num_frames=7, actions=actions.clamp(max=1) * 3)])


def test_text_tokenizers_without_bos_and_eos_write_none(video_lm: VideoLM) -> None:
    import copy

    processor = copy.copy(video_lm.processor)
    processor.tokenizer = copy.deepcopy(video_lm.tokenizer)
    processor.tokenizer.bos_token = None
    processor.tokenizer.eos_token = None
    assert processor.encode([TextSegment("hi")]).tolist() == processor.encode_text("hi")
    header = VideoHeader(grid=Grid(t=1, h=1, w=1))
    assert processor.encode_prompt([], header).tolist() == video_lm.template.header(header)
    assert processor.encode([]).tolist() == []


def test_bad_documents_raise(video_lm: VideoLM) -> None:
    processor, grid = video_lm.processor, Grid(t=2, h=2, w=2)
    known = torch.zeros(2, 2, 2, dtype=torch.bool)
    with pytest.raises(ModelError, match="can only be the last segment of a prompt"):
        processor.encode([VideoSegment(codes=_codes(grid), known=known)])
    with pytest.raises(ModelError, match="list of TextSegment and VideoSegment, got str"):
        processor.encode(["a cat"])  # type: ignore[list-item]
    with pytest.raises(ShapeError, match=r"codes must lie in \[0, 1000\)"):
        processor.encode([VideoSegment(codes=_codes(grid) + 1000)])
    with pytest.raises(ShapeError, match="2 latent frames"):
        processor.encode([VideoSegment(codes=_codes(grid), num_frames=9)])
    with pytest.raises(ModelError, match="outside a video"):
        processor.decode([5, video_lm.vocabulary.code_offset])
    with pytest.raises(ModelError, match="never closed"):
        processor.decode([video_lm.vocabulary.open_id])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs frames or codes"),
        ({"frames": torch.zeros(2, 3, 1, 8, 8)}, r"frames \[1,3,T,H,W\]"),
        ({"codes": torch.zeros(1, 1, 1, 1)}, r"codes \[1,K,t,h,w\]"),
        ({"codes": torch.zeros(1, 1, 1, 1, 1)}, "codes are int64"),
        ({"codes": torch.zeros(1, 1, 1, 1, 1, dtype=torch.int64), "known": torch.zeros(1, 1, 1)}, "known is bool"),
    ],
)
def test_bad_segments_raise(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        VideoSegment(**arguments)  # type: ignore[arg-type]
