"""The training log: what is written, what is shown, and what a kill leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tokvid import training_log
from tokvid.errors import TrainingError
from tokvid.training_log import TrainingLog, check_finite, read_log


def run(folder: Path, steps: range, total: int = 40, **settings: object) -> str:
    """Log ``steps`` of a made-up run; returns what was shown."""
    stream = io.StringIO()
    settings = {"tensorboard": False, "stream": stream, "start_step": steps.start - 1, **settings}
    with TrainingLog(folder, total, title="codec", **settings) as log:  # type: ignore[arg-type]
        for step in steps:
            values = {"psnr": 20.0 + step} if step % 5 == 0 else {}
            log.step(step, {"l1": torch.tensor(1.0 / step, requires_grad=True)}, values, amount=64)
    return stream.getvalue()


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["l1"], line["psnr"]) for line in read_log(folder / "log.jsonl")]


def test_a_line_holds_means_and_speed(tmp_path: Path) -> None:
    run(tmp_path, range(1, 41))
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[0]["l1"] == pytest.approx(sum(1 / s for s in range(1, 11)) / 10)
    assert lines[0]["psnr"] == pytest.approx((25 + 30) / 2)  # only over the steps that have it
    assert lines[0]["frames/s"] > 0


def test_the_last_step_is_written_whatever_its_number(tmp_path: Path) -> None:
    run(tmp_path, range(1, 8), total=7)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [7]


def test_a_killed_run_that_resumes_writes_the_same_lines(tmp_path: Path) -> None:
    run(tmp_path / "whole", range(1, 41))
    run(tmp_path / "killed", range(1, 36))
    with (tmp_path / "killed" / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 36, "l')  # torn by the kill
    run(tmp_path / "killed", range(21, 41))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_damaged_log_is_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('nonsense\n{"step": 1}\n', encoding="utf-8")
    with pytest.raises(TrainingError, match="line 1 is not JSON"):
        run(tmp_path, range(1, 11))
    assert "nonsense" in (tmp_path / "log.jsonl").read_text(encoding="utf-8")


def test_waiting_for_data_is_measured(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, 2, every=2, tensorboard=False, stream=io.StringIO()) as log:
        for step in (1, 2):
            with log.waiting():
                time.sleep(0.03)
            time.sleep(0.01)
            log.step(step, {"l1": 1.0})
    assert 0.5 < read_log(tmp_path / "log.jsonl")[0]["data_wait"] <= 1.0


def test_without_a_terminal_there_are_a_few_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "SECONDS_BETWEEN_LINES", 0.0)
    shown = run(tmp_path, range(1, 1001), total=1000, every=1)
    lines = shown.splitlines()
    assert 10 <= len(lines) <= training_log.MOST_LINES + 1
    assert "\r" not in shown
    assert lines[-1].startswith("codec 1000/1000  l1 0.001  psnr 1020")
    assert "frames/s" in lines[-1] and "left 0:00" in lines[-1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with (
        os.fdopen(follower, "w") as stream,
        TrainingLog(tmp_path, 20, every=5, title="codec", tensorboard=False, stream=stream) as log,
    ):
        for step in range(1, 21):
            time.sleep(0.01)
            log.step(step, {"l1": 0.5}, amount=8)
            if step == 10:
                log.note("saved step-000010")
    # A pseudo-terminal hands over what it holds in pieces, and ends with an error on Linux.
    pieces: list[bytes] = []
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 100_000):
            pieces.append(piece)
    os.close(leader)
    shown = b"".join(pieces).decode()
    assert "20/20" in shown and "l1 0.5" in shown and "frames/s" in shown and "\r" in shown
    assert "saved step-000010" in shown


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path, 20, stream=io.StringIO()) as log:
        for step in range(1, 21):
            log.step(step, {"l1": 1.0 / step})
        log.pictures("clips", np.zeros((8, 8, 3), np.uint8))
        assert log.last["l1"] == pytest.approx(sum(1 / s for s in range(11, 21)) / 10)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("l1")] == [10, 20]
    assert [event.step for event in events.Images("clips")] == [20]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of the size of files")
def test_a_disk_that_tensorboard_cannot_write_to_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is a thread of tensorboard's own: neither its traceback is shown, nor does the run end of it."""
    import resource

    tracebacks: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    hook = threading.excepthook
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    stream = io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with TrainingLog(tmp_path, 40, stream=stream) as log:
            for step in range(1, 41):
                log.step(step, {"l1": 1.0})
                if step % 10 == 0:
                    log.pictures("clips", noise)
                    time.sleep(0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tracebacks == []
    complaints = [line for line in stream.getvalue().splitlines() if "tensorboard" in line]
    assert complaints == ["tensorboard gets nothing more (File too large); log.jsonl goes on"]
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [10, 20, 30, 40]
    assert threading.excepthook is hook


def test_other_threads_keep_their_tracebacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracebacks: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    with TrainingLog(tmp_path, 1, stream=io.StringIO()):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [traceback.exc_type for traceback in tracebacks] == [ZeroDivisionError]


def test_what_is_measured_now_and_then_stays_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    with TrainingLog(tmp_path, 40, every=10, tensorboard=False, stream=stream) as log:
        for step in range(1, 41):
            values = {"usage": step / 100} if step in (15, 35) else {}
            log.step(step, {"l1": 1.0}, values)
    shown = stream.getvalue().splitlines()
    assert ["usage 0.15" in line for line in shown] == [False, True, True, False]
    assert ["usage 0.35" in line for line in shown] == [False, False, False, True]
    # The file says when it was measured.
    assert ["usage" in line for line in read_log(tmp_path / "log.jsonl")] == [False, True, False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_a_loss_that_is_not_finite_stops_and_is_named(bad: float) -> None:
    check_finite(1, {"l1": 0.5, "perceptual": torch.tensor(1.0)})
    with pytest.raises(TrainingError, match="step 17: the loss part 'perceptual' is"):
        check_finite(17, {"l1": 0.5, "perceptual": bad})


def test_the_log_is_whole_when_the_run_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError),
        TrainingLog(tmp_path, 20, tensorboard=False, stream=io.StringIO()) as log,
    ):
        for step in range(1, 21):
            loss = float("nan") if step == 15 else 1.0
            check_finite(step, {"l1": loss})
            log.step(step, {"l1": loss})
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [10]


def test_importing_the_log_imports_no_torch() -> None:
    import subprocess

    code = "import sys, tokvid.training_log; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], check=True)


def test_weights_and_biases_gets_the_same_where_a_project_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "without", range(1, 11), total=10)
    assert not (tmp_path / "without" / "wandb").exists()
    monkeypatch.setenv("WANDB_PROJECT", "videos")
    with TrainingLog(tmp_path / "with", 10, tensorboard=False, stream=io.StringIO()) as log:
        for step in range(1, 11):
            log.step(step, {"l1": torch.tensor(0.5)})
        log.pictures("strip", np.zeros((8, 8, 3), np.uint8))
    (file,) = (tmp_path / "with" / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # a process of wandb's own writes it
    while b"l1" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"l1" in file.read_bytes() and list(file.parent.rglob("media/images/strip_*.png"))


def test_what_weights_and_biases_refuses_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "no/project")
    stream = io.StringIO()
    with TrainingLog(tmp_path, 2, every=1, tensorboard=False, stream=stream) as log:
        log.step(1, {"l1": 1.0})
        log.step(2, {"l1": 1.0})
    assert stream.getvalue().count("wandb gets nothing more") == 1 and len(read_log(tmp_path / "log.jsonl")) == 2
