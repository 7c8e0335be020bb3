"""Batches of a run: every sample once, full rows, the same whoever asks and in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokvid.errors import ConfigError, DataError
from tokvid_lm.batch_plan import BatchPlan, Stage, best_fit_decreasing
from tokvid_lm.training_config import CurriculumStage, LMTrainingConfig

LENGTHS = np.random.default_rng(0).integers(20, 400, 4096)


def length(sample: int, latent_frames: int | None) -> int:
    return int(LENGTHS[sample]) if latent_frames is None else 20 + sample % 7


def plan(stages: list[Stage], pack: int = 0, seed: int = 0) -> BatchPlan:
    return BatchPlan(stages, pack=pack, length=length, seed=seed)


def test_one_document_a_row_in_turn_and_stages_one_after_the_other() -> None:
    batches = plan([Stage(batches=4, rows=5, latent_frames=1), Stage(batches=0, rows=9), Stage(batches=4, rows=3)])
    all_of_them = [batches[number] for number in range(len(batches))]
    assert [len(batch.rows) for batch in all_of_them] == [5, 5, 5, 5, 3, 3, 3, 3]
    assert [sample for batch in all_of_them for sample in batch.samples] == list(range(32))
    assert [batch.latent_frames for batch in all_of_them] == [1] * 4 + [None] * 4
    for outside in (8, -1):
        with pytest.raises(IndexError):
            batches[outside]


@pytest.mark.parametrize("pack", [0, 1024])
def test_the_batches_of_a_part_hold_its_samples_alone(pack: int) -> None:
    stages = [Stage(batches=6, rows=2, latent_frames=1), Stage(batches=30, rows=4)]
    parts = BatchPlan(stages, pack=pack, length=length, seed=0, parts=3)
    used = [sample for number in range(36) for sample in parts[number].samples]
    assert len(used) == len(set(used))
    for number in range(36):
        assert {sample % 3 for sample in parts[number].samples} == {number % 3}
    if not pack:
        assert sorted(used) == list(range(len(used))), "none is left out"


def test_packed_rows_are_full_and_hold_every_sample_once() -> None:
    batches = plan([Stage(batches=60, rows=4)], pack=1024)
    rows = [row for number in range(60) for row in batches[number].rows]
    used = [sample for row in rows for sample in row]
    assert len(used) == len(set(used))
    fill = np.array([LENGTHS[list(row)].sum() / 1024 for row in rows])
    assert fill.max() <= 1.0 and fill.mean() > 0.97
    # Whoever waits is packed soon: hardly a sample below the last but a window is missing.
    assert len(set(range(max(used) - 200)) - set(used)) <= 8


def test_documents_that_nothing_fits_beside_do_not_wait_for_ever() -> None:
    batches = BatchPlan([Stage(batches=60, rows=4)], pack=100, length=lambda sample, _: 51 + sample % 10, seed=0)
    used = [sample for number in range(60) for row in batches[number].rows for sample in row]
    assert set(range(200)) <= set(used), "no window of 16 rows is left behind by more than one other"


def test_the_plan_does_not_depend_on_who_asks_first() -> None:
    stages = [Stage(batches=10, rows=2, latent_frames=1), Stage(batches=20, rows=3)]
    one, other = plan(stages, pack=512), plan(stages, pack=512)
    late = other[29]
    assert [one[number] for number in range(30)] == [other[number] for number in range(30)]
    assert one[29] == late
    assert plan(stages, pack=512, seed=1)[29] != late
    with pytest.raises(DataError, match="does not fit a packed row of 100: raise pack"):
        plan([Stage(batches=9, rows=2)], pack=100)[0]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_best_fit_decreasing_loses_nothing_and_overfills_nothing(lengths: list[int]) -> None:
    items = [(size, number) for number, size in enumerate(lengths)]
    bins = best_fit_decreasing(items, 50)
    assert sorted(item for row in bins for item in row) == sorted(items)
    assert all(sum(size for size, _ in row) <= 50 for row in bins)
    # No two bins could be one but for the last: first fit leaves at most one half empty.
    assert sum(sum(size for size, _ in row) * 2 <= 50 for row in bins) <= 1


def test_a_curriculum_longer_than_the_run_is_refused() -> None:
    stage = CurriculumStage(steps=2, latent_frames=1, batch_size=5)
    with pytest.raises(ConfigError, match="more steps than the run"):
        LMTrainingConfig(steps=2, warmup_steps=1, curriculum=(stage, stage))
