"""How much is done a second, also by what goes on where another run was stopped."""

from __future__ import annotations

import pytest

from tokvid.cli.progress import Pace


def test_the_pace_is_that_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr("tokvid.cli.progress.time.perf_counter", lambda: next(seconds))
    seen: list[tuple[int, int]] = []
    pace = Pace(lambda done, total: seen.append((done, total)))
    assert pace.per_second == 0.0
    pace(100, 160)  # 60 frames were there already
    assert pace.per_second == 50.0
    pace(130, 160)
    pace(160, 160)
    assert pace.per_second == 30.0
    assert seen == [(100, 160), (130, 160), (160, 160)]
