"""Grid to sequence and back, and the dress of a video around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lm.tiny import build_vocabulary
from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid_lm.layout import RasterLayout
from tokvid_lm.segments import split
from tokvid_lm.templates import CODE, build_template

grids = st.builds(Grid, t=st.integers(1, 12), h=st.integers(1, 11), w=st.integers(1, 11))


@settings(max_examples=40, deadline=None)
@given(grid=grids, num_codebooks=st.integers(1, 4))
def test_flatten_and_back(grid: Grid, num_codebooks: int) -> None:
    layout = RasterLayout()
    codes = torch.arange(2 * num_codebooks * grid.cells).reshape(2, num_codebooks, grid.t, grid.h, grid.w)
    sequence = layout.flatten(codes)
    assert torch.equal(layout.unflatten(sequence, grid, num_codebooks), codes)
    # The codebook of a position is the k its value came from.
    assert torch.equal(sequence[0] // grid.cells, layout.codebooks(grid, num_codebooks))


def test_order_is_time_row_column_codebook() -> None:
    codes = torch.zeros(1, 2, 2, 2, 2, dtype=torch.int64)
    for k in range(2):
        for t in range(2):
            for h in range(2):
                for w in range(2):
                    codes[0, k, t, h, w] = 1000 * t + 100 * h + 10 * w + k
    expected = [1000 * t + 100 * h + 10 * w + k for t in (0, 1) for h in (0, 1) for w in (0, 1) for k in (0, 1)]
    assert RasterLayout().flatten(codes).tolist() == [expected]


def test_wrong_shapes_raise() -> None:
    layout = RasterLayout()
    with pytest.raises(ShapeError, match="B,K,t,h,w"):
        layout.flatten(torch.zeros(2, 3, 4, 5))
    with pytest.raises(ShapeError, match=r"\[B,16\]"):
        layout.unflatten(torch.zeros(1, 15), Grid(t=2, h=2, w=2), 2)


@settings(max_examples=60, deadline=None)
@given(grid=grids, seed=st.integers(0, 2**32), kind=st.sampled_from(["bare", "rows"]))
def test_template_builds_what_it_parses(grid: Grid, seed: int, kind: str) -> None:
    vocabulary = build_vocabulary()
    template = build_template(kind, vocabulary)
    books = RasterLayout().codebooks(grid, vocabulary.num_codebooks)
    codes = torch.randint(vocabulary.codebook_size, books.shape, generator=torch.Generator().manual_seed(seed))
    code_ids = vocabulary.codes_to_ids(codes, books)
    (ids,) = template.build(code_ids[None], grid).tolist()
    assert len(ids) == template.length(grid)
    parsed, again = template.parse(ids)
    assert parsed == grid
    assert torch.equal(again, code_ids)


def test_template_refuses_what_it_would_not_write() -> None:
    vocabulary = build_vocabulary()
    template = build_template("bare", vocabulary)
    grid = Grid(t=1, h=2, w=10)
    code_ids = torch.full((1, 40), vocabulary.code_offset)
    (good,) = template.build(code_ids, grid).tolist()
    zero, x = vocabulary.special["<|0|>"], vocabulary.special["<|x|>"]
    end = good.index(vocabulary.special["<|codes|>"])
    broken = {
        "starts with": good[1:],
        "ends with <": good[:-1],
        "holds 40 codes and separators, got 39": good[:-2] + good[-1:],
        "without leading zeros": [good[0], zero, *good[1:]],
        "t x h x w": [*good[:end], x, *good[end:]],
        "neither a digit": [good[0], 3, *good[1:]],
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
    grid = Grid(t=2, h=1, w=1)
    zero, frame = vocabulary.special["<|0|>"], vocabulary.special["<|frame|>"]
    assert template.body(grid).tolist() == [zero, CODE, CODE, frame] * 2
    assert template.body(Grid(t=1, h=11, w=1)).tolist()[-5:] == [*template.digits(10), CODE, CODE, frame]
    (good,) = template.build(torch.full((1, 4), vocabulary.code_offset), grid).tolist()
    good[-2] = zero
    with pytest.raises(ModelError, match=f"place 7 of a 2x1x1 video is for id {frame}, got {zero}"):
        template.parse(good)


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
