"""Grid to sequence and back, and the dress of a video around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import build_vocabulary
from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm.layout import LAYOUTS, RasterLayout, build_layout
from tokvid_lm.segments import split
from tokvid_lm.templates import ACTION, CODE, VideoHeader, build_template
from tokvid_lm.vocabulary import MODES

grids = st.builds(Grid, t=st.integers(1, 12), h=st.integers(1, 11), w=st.integers(1, 11))
KINDS = ("bare", "emu3", "rows")


@settings(max_examples=60, deadline=None)
@given(grid=grids, slots=st.integers(1, 4), kind=st.sampled_from(sorted(LAYOUTS)))
def test_flatten_and_back(grid: Grid, slots: int, kind: str) -> None:
    layout = build_layout(kind)
    ids = torch.arange(2 * slots * grid.cells).reshape(2, slots, grid.t, grid.h, grid.w)
    sequence = layout.flatten(ids)
    assert torch.equal(layout.unflatten(sequence, grid, slots), ids)
    # The slot and the cell of a place are those that its value came from, and frames follow one another.
    assert torch.equal(sequence[0] // grid.cells, layout.slots(grid, slots))
    cells = layout.cells(grid, slots)
    assert torch.equal(sequence[0] % grid.cells, (cells * torch.tensor([grid.h * grid.w, grid.w, 1])).sum(1))
    assert torch.equal(cells[:, 0], cells[:, 0].sort().values)


def test_orders_within_a_frame() -> None:
    raster, frame, drawn = (build_layout(kind).frame_order(2, 2, 2).tolist() for kind in ("raster", "frame", "random"))
    assert raster == [0, 1, 2, 3, 4, 5, 6, 7]
    assert frame == [0, 2, 4, 6, 1, 3, 5, 7], "the whole frame in slot 0 first"
    assert drawn[1::2] == [number + 1 for number in drawn[::2]], "the slots of a cell side by side"
    assert build_layout("random").frame_order(8, 8, 1).tolist() != list(range(64))
    with pytest.raises(ModelError, match="unknown layout 'rastr': did you mean 'raster'"):
        build_layout("rastr")


def test_wrong_shapes_raise() -> None:
    layout = RasterLayout()
    with pytest.raises(ShapeError, match="B,P,t,h,w"):
        layout.flatten(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ShapeError, match=r"\[B,16\]"):
        layout.unflatten(torch.zeros(1, 15), Grid(t=2, h=2, w=2), 2)


@settings(max_examples=80, deadline=None)
@given(
    grid=grids,
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(MODES),
    fps=st.one_of(st.none(), st.integers(1, 1000_00).map(lambda hundredths: hundredths / 100)),
    actions=st.integers(0, 3),
)
def test_template_builds_what_it_parses(
    grid: Grid, seed: int, kind: str, mode: str, fps: float | None, actions: int
) -> None:
    vocabulary = build_vocabulary(num_actions=4)
    template = build_template(kind, vocabulary)
    header = VideoHeader(grid=grid, mode=mode, fps=fps, actions=actions)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(vocabulary.codebook_size, (1, 2, grid.t, grid.h, grid.w), generator=generator)
    code_ids = RasterLayout().flatten(vocabulary.codes_to_ids(codes))
    action_ids = vocabulary.action_ids(torch.randint(4, (1, (grid.t - 1) * actions), generator=generator))
    (ids,) = template.build(code_ids, header, action_ids).tolist()
    assert len(ids) == template.length(header)
    parsed = template.parse(ids)
    assert parsed.header == header
    assert torch.equal(parsed.code_ids, code_ids[0]) and torch.equal(parsed.action_ids, action_ids[0])
    body = template.body(header)
    assert torch.equal(body.frame, body.frame.sort().values) and int(body.frame[-1]) == grid.t - 1
    assert (body.ids[body.frame == 0] != ACTION).all(), "nothing leads to the first frame"


def test_template_refuses_what_it_would_not_write() -> None:
    vocabulary = build_vocabulary()
    template = build_template("bare", vocabulary)
    header = VideoHeader(grid=Grid(t=1, h=2, w=10))
    code_ids = torch.full((1, 40), vocabulary.code_offset)
    (good,) = template.build(code_ids, header).tolist()
    zero, x, fps = (vocabulary.special[name] for name in ("<|0|>", "<|x|>", "<|fps|>"))
    end = good.index(vocabulary.special["<|codes|>"])
    broken = {
        "starts with": good[1:],
        "ends with <": good[:-1],
        "holds 40 codes and separators, got 39": good[:-2] + good[-1:],
        "leading zeros": [*good[:2], zero, *good[2:]],
        "does not say what a 'bare' template wrote": [*good[:end], x, zero, *good[end:]],
        "a number that is none": [*good[:end], fps, *good[end:]],
        "says its mode": [good[0], *good[2:]],
        "neither a digit": [*good[:2], 3, *good[2:]],
        "have none": [token for token in good if token != vocabulary.special["<|codes|>"]],
    }
    for message, ids in broken.items():
        with pytest.raises(ModelError, match=message):
            template.parse(ids)
    with pytest.raises(ModelError, match="unknown template 'bear': did you mean 'bare'"):
        build_template("bear", vocabulary)


def test_rows_are_numbered_frames_separated_and_a_wrong_separator_is_named() -> None:
    vocabulary = build_vocabulary()
    template = build_template("rows", vocabulary)
    header = VideoHeader(grid=Grid(t=2, h=1, w=1))
    zero, frame = vocabulary.special["<|0|>"], vocabulary.special["<|frame|>"]
    assert template.body(header).ids.tolist() == [zero, CODE, CODE, frame] * 2
    tall = template.body(VideoHeader(grid=Grid(t=1, h=11, w=1))).ids.tolist()
    assert tall[-5:] == [*template.number(10), CODE, CODE, frame]
    (good,) = template.build(torch.full((1, 4), vocabulary.code_offset), header).tolist()
    good[-2] = zero
    with pytest.raises(ModelError, match=f"place 7 of a 2x1x1 video is for id {frame}, got {zero}"):
        template.parse(good)


def test_emu3_says_resolution_rate_and_duration_and_ends_rows_and_frames() -> None:
    vocabulary = build_vocabulary(num_codebooks=1)
    template = build_template("emu3", vocabulary)
    header = VideoHeader(grid=Grid(t=2, h=2, w=3), fps=23.98)
    names = ["<|video|>", "<|mode:next_token|>", "<|2|>", "<|x|>", "<|3|>", "<|fps|>", "<|2|>", "<|3|>", "<|.|>"]
    names += ["<|9|>", "<|8|>", "<|duration|>", "<|2|>", "<|codes|>"]
    assert template.header(header) == [vocabulary.special[name] for name in names]
    row, frame = vocabulary.special["<|row|>"], vocabulary.special["<|frame|>"]
    assert template.body(header).ids.tolist() == [*[CODE, CODE, CODE, row] * 2, frame] * 2


@pytest.mark.parametrize("wrong", [{"mode": "maskgti"}, {"fps": 0.0}, {"actions": -1}])
def test_headers_that_cannot_be_written_raise(wrong: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        VideoHeader(grid=Grid(t=1, h=1, w=1), **wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.lists(st.integers(2, 9), max_size=4), st.tuples(st.integers(2, 9))), max_size=6))
def test_split_joined_again_is_the_sequence(parts: list[list[int] | tuple[int]]) -> None:
    ids: list[int] = []
    videos = 0
    for part in parts:  # tuples stand for videos
        videos += isinstance(part, tuple)
        ids += [0, *part, 1] if isinstance(part, tuple) else part
    spans = split(ids, open_id=0, close_id=1)
    assert [token for span in spans for token in span.ids] == ids
    assert sum(span.is_video for span in spans) == videos


@pytest.mark.parametrize(
    ("ids", "message"), [([0, 3], "never closed"), ([1], "none was open"), ([0, 0, 1], "inside the one")]
)
def test_split_refuses_torn_videos(ids: list[int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        split(ids, open_id=0, close_id=1)
