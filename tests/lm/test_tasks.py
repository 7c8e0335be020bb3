"""Which cells are given: every task leaves something to draw, and what users build is what training shows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ConfigError, ModelError
from tokvid.grid import Grid
from tokvid_lm.documents import needs_prefix
from tokvid_lm.mask_schedule import MaskSchedule
from tokvid_lm.tasks import VIDEO_TASKS, both_ends, first_frames, inside_box, known_cells

GRID = Grid(t=5, h=8, w=8)


@settings(max_examples=100, deadline=None)
@given(
    task=st.sampled_from(VIDEO_TASKS),
    grid=st.builds(Grid, t=st.integers(1, 6), h=st.integers(1, 8), w=st.integers(1, 8)),
    seed=st.integers(0, 2**31),
)
def test_something_is_always_left_to_draw(task: str, grid: Grid, seed: int) -> None:
    known = known_cells(task, grid, np.random.default_rng(seed).random(4))  # type: ignore[arg-type]
    assert known.shape == (grid.t, grid.h, grid.w) and not known.all()
    assert (known == known_cells(task, grid, np.random.default_rng(seed).random(4))).all()  # type: ignore[arg-type]


def test_the_tasks_are_what_they_are_called() -> None:
    noise = np.array([0.5, 0.5, 0.3, 0.7])

    def known(task: str) -> torch.Tensor:
        return torch.from_numpy(known_cells(task, GRID, noise))  # type: ignore[arg-type]

    assert not known("text_to_video").any()
    assert torch.equal(known("image_to_video"), first_frames(GRID, 1))
    assert torch.equal(known("continuation"), first_frames(GRID, 3))
    assert torch.equal(known("interpolation"), both_ends(GRID))
    assert torch.equal(known("outpainting"), ~known("inpainting"))
    assert torch.equal(known("outpainting"), inside_box(GRID, 1, 3, 4, 4))
    with pytest.raises(ModelError, match="unknown task 'inpaint': did you mean 'inpainting'"):
        known("inpaint")
    for wrong in (lambda: first_frames(GRID, 5), lambda: both_ends(GRID, 3), lambda: inside_box(GRID, 6, 0, 3, 1)):
        with pytest.raises(ModelError):
            wrong()


def test_what_lies_beyond_the_causal_past_is_said_before() -> None:
    def beyond(known: torch.Tensor, mode: str) -> bool:
        frame = torch.arange(5).repeat_interleave(64).numpy()
        return needs_prefix(known.flatten().numpy(), frame, mode)

    some_of_the_first = torch.zeros(5, 8, 8, dtype=torch.bool)
    some_of_the_first[0, 4:] = True
    cases = {
        "nothing": (torch.zeros(5, 8, 8, dtype=torch.bool), False, False),
        "the beginning": (first_frames(GRID, 2), False, False),
        "both ends": (both_ends(GRID), True, True),
        "part of the first frame": (some_of_the_first, True, False),
        "a box": (inside_box(GRID, 2, 2, 2, 2), True, True),
    }
    for name, (known, by_code, by_frame) in cases.items():
        assert beyond(known, "next_token") is by_code, name
        assert beyond(known, "frame") is by_frame, name
        assert not beyond(known, "maskgit"), name


@pytest.mark.parametrize(
    ("total", "steps", "counts"),
    [
        (256, 8, [251, 236, 212, 181, 142, 97, 49, 0]),
        (256, 12, [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]),
        (1024, 12, [1015, 989, 946, 886, 812, 724, 623, 512, 391, 265, 133, 0]),
    ],
)
def test_as_many_stay_masked_as_in_the_published_sampler(total: int, steps: int, counts: list[int]) -> None:
    assert MaskSchedule().counts(total, steps) == counts


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["cosine", "arccos", "linear", "power"]),
    total=st.integers(1, 500),
    steps=st.integers(1, 40),
)
def test_every_step_reveals_a_code_and_the_last_all(kind: str, total: int, steps: int) -> None:
    steps = min(steps, total)
    schedule = MaskSchedule(kind=kind)  # type: ignore[arg-type]
    counts = [total, *schedule.counts(total, steps)]
    assert counts[-1] == 0 and all(after < before for before, after in pairwise(counts))
    shares = schedule.draw(np.linspace(0, 1, 11))
    assert shares[0] == 1.0 and abs(shares[-1]) < 1e-12 and (np.diff(shares) < 0).all()


def test_schedules_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="a schedule is one of cosine"):
        MaskSchedule(kind="sine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="exponent"):
        MaskSchedule(kind="power", exponent=0.0)
