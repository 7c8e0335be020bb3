"""What is hidden, how it is guessed, and that nothing of it reaches the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.lm.test_samplers import build
from tokvid.data.sprites import SpriteWorld, SpriteWorldConfig
from tokvid.errors import ShapeError
from tokvid.grid import Grid
from tokvid_lm.completion import COMPLETIONS, Pictures, blend, complete_clips, copy_last, hidden_pixels, mean_colour
from tokvid_lm.tasks import both_ends, first_frames, inside_box

CLIPS = SpriteWorld(SpriteWorldConfig(size=(16, 16), num_frames=9)).render_many(range(3), "train")[0]
CAPTIONS = ("abc", "de", "f")


def ramp(num_frames: int) -> Pictures:
    """A clip whose frame f has the value 10 f everywhere, uint8 [1,T,2,2,3]."""
    return np.broadcast_to(
        np.arange(num_frames, dtype=np.uint8)[None, :, None, None, None] * 10, (1, num_frames, 2, 2, 3)
    )


@given(grid=st.builds(Grid, t=st.integers(2, 5), h=st.integers(1, 3), w=st.integers(1, 3)), cut=st.integers(0, 3))
def test_hidden_pixels_are_those_of_unknown_cells(grid: Grid, cut: int) -> None:
    known = torch.rand(grid.t, grid.h, grid.w, generator=torch.Generator().manual_seed(grid.h)) < 0.5
    num_frames = 1 + 4 * (grid.t - 1) - cut
    hidden = hidden_pixels(known, num_frames, strides=(4, 8))
    assert hidden.shape == (num_frames, 8 * grid.h, 8 * grid.w)
    for frame in range(num_frames):
        cells = ~known[(frame + 3) // 4].numpy()
        assert np.array_equal(hidden[frame], cells.repeat(8, 0).repeat(8, 1))


def test_guesses() -> None:
    clip = ramp(9)
    rest = hidden_pixels(first_frames(Grid(t=3, h=1, w=1), 1), 9, strides=(4, 2))
    assert copy_last(clip, rest)[0, :, 0, 0, 0].tolist() == [0] * 9
    middle = hidden_pixels(both_ends(Grid(t=3, h=1, w=1)), 9, strides=(4, 2))
    assert middle[:, 0, 0].tolist() == [False] + [True] * 4 + [False] * 4
    assert np.array_equal(blend(clip, middle), clip)  # what moves evenly is guessed exactly
    bent = clip.copy()
    bent[:, 2] = 255
    assert np.array_equal(blend(bent, middle), clip)
    hole = ~hidden_pixels(inside_box(Grid(t=3, h=2, w=2), 0, 0, 1, 1), 9, strides=(4, 1))
    assert np.array_equal(mean_colour(clip, hole), clip)
    holed = clip.copy()
    holed[:, :, 0, 0] = 200
    assert np.array_equal(mean_colour(holed, hole), clip)


@pytest.mark.parametrize("task", COMPLETIONS)
def test_nothing_hidden_reaches_the_model(task: str) -> None:
    lm = build()
    found = complete_clips(lm, CLIPS, CAPTIONS, task=task, mode="maskgit", batch_size=2)
    assert found.frames.shape == found.guesses.shape == CLIPS.shape and found.hidden.any()
    assert np.array_equal(found.guesses[:, ~found.hidden], CLIPS[:, ~found.hidden])
    other = np.where(found.hidden[None, ..., None], 255 - CLIPS, CLIPS)
    assert np.array_equal(complete_clips(lm, other, CAPTIONS, task=task, mode="maskgit").frames, found.frames)
    # The figures are those of the hidden pixels alone.
    error = np.square(CLIPS.astype(float) - found.guesses)[:, found.hidden].mean()
    assert found.guess_psnr == pytest.approx(10 * np.log10(255**2 / error))
    worse = np.square(other.astype(float) - found.frames)[:, found.hidden].mean()
    assert complete_clips(lm, other, CAPTIONS, task=task, mode="maskgit").psnr == pytest.approx(
        10 * np.log10(255**2 / worse)
    )


def test_a_clip_that_ends_within_a_latent_frame_keeps_its_length() -> None:
    found = complete_clips(build(), CLIPS[:, :8], CAPTIONS, task="continuation", mode="frame")
    assert found.frames.shape == CLIPS[:, :8].shape


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ShapeError, match="continuation, interpolation, inpainting, got 'dreaming'"):
        complete_clips(build(), CLIPS, CAPTIONS, task="dreaming", mode="maskgit")
