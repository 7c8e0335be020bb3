"""A run that was stopped in any way and resumed gives the numbers of one that never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.tokenizers.tiny_run import STEPS, assert_same_run, at_step, killed_at, lines, recipe
from tokvid.checkpoint import load_state, newest_valid, save_state, step_folder
from tokvid.config import to_mapping
from tokvid.data.clips import ClipArray
from tokvid.errors import CheckpointError
from tokvid.optimizer import AdamWConfig
from tokvid_tokenizers.training import CODEC_FOLDER, RECIPE_FILE, CodecTrainer, train_codec
from tokvid_tokenizers.training_config import CodecRecipe

Frames = npt.NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[2]


def test_a_run_gives_the_same_again(tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]) -> None:
    train_codec(recipe(tmp_path), *clips)
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize("step", [2, 4, 7, 9])
def test_a_run_that_died_and_went_on_is_the_same_run(
    tmp_path: Path,
    straight: Path,
    clips: tuple[ClipArray, ClipArray],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    killed_at(monkeypatch, step, recipe(tmp_path), clips)
    assert newest_valid(tmp_path).step == step // 4 * 4
    train_codec(recipe(tmp_path), *clips, resume=True)
    assert_same_run(tmp_path, straight)


def test_a_run_with_adamw_goes_on_as_it_was(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's fused kernel takes averages in the order of memory, and a checkpoint does not keep channels last."""
    straight, killed = (recipe(tmp_path / name, optimizer=AdamWConfig()) for name in ("straight", "killed"))
    train_codec(straight, *clips)
    killed_at(monkeypatch, 5, killed, clips)
    train_codec(killed, *clips, resume=True)
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


def test_a_torn_checkpoint_is_passed_over(
    tmp_path: Path,
    straight: Path,
    clips: tuple[ClipArray, ClipArray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed_at(monkeypatch, 9, recipe(tmp_path), clips)
    torn = step_folder(tmp_path, 8) / "tensors.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    train_codec(recipe(tmp_path), *clips, resume=True)
    captured = capsys.readouterr()
    assert f"passed over {step_folder(tmp_path, 8)}" in captured.err
    # stdout belongs to the figures that 'tokvid train' prints as JSON.
    assert captured.out == ""
    assert_same_run(tmp_path, straight)

    for checkpoint in tmp_path.glob("step-*"):
        (checkpoint / "tensors.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=f"every checkpoint in {tmp_path} is torn: put one back"):
        train_codec(recipe(tmp_path), *clips, resume=True)
    assert lines(tmp_path)[-1]["step"] == STEPS, "nothing is written over"


def test_resuming_a_finished_run_ends_in_the_same_codec(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    train_codec(recipe(tmp_path), *clips)
    train_codec(recipe(tmp_path), *clips, resume=True)
    assert_same_run(tmp_path, straight)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    train_codec(recipe(tmp_path), *clips, resume=True)
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: dataclasses.replace(r, seed=4), "seed was 3, here it is 4; "),
        (
            lambda r: dataclasses.replace(r, codec=dataclasses.replace(r.codec, decoder_blocks=(2,))),
            r"codec.decoder_blocks was \[1\], here it is \[2\]; ",
        ),
        (
            lambda r: dataclasses.replace(r, seed=4, data=dataclasses.replace(r.data, two_sprite_share=0.0)),
            r"seed was 3, here it is 4 \(and 1 more\); ",
        ),
        (
            lambda r: dataclasses.replace(r, training=dataclasses.replace(r.training, steps=STEPS + 1)),
            "training.steps was 12, here it is 13; ",
        ),
    ],
)
def test_resuming_with_another_recipe_is_refused(
    straight: Path, clips: tuple[ClipArray, ClipArray], change: Callable[[CodecRecipe], CodecRecipe], words: str
) -> None:
    before = (straight / RECIPE_FILE).read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"of another run: {words}give this run another output folder"):
        train_codec(change(recipe(straight)), *clips, resume=True)
    assert (straight / RECIPE_FILE).read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: np.concatenate([frames[1:], frames[:1]]),
        lambda frames: frames[:-1],
        lambda frames: np.where(np.arange(frames.size).reshape(frames.shape) == 12345, frames ^ 1, frames),
    ],
    ids=["another order", "one less", "one pixel"],
)
def test_resuming_with_other_clips_is_refused(
    straight: Path, clips: tuple[ClipArray, ClipArray], change: Callable[[Frames], Frames]
) -> None:
    """A folder's videos can change under one recipe."""
    frames = change(clips[0].frames)
    other = dataclasses.replace(clips[0], frames=frames, captions=clips[0].captions[: len(frames)])
    with pytest.raises(CheckpointError, match="of another run: the clips differ; give this run another output folder"):
        train_codec(recipe(straight), other, clips[1], resume=True)


def test_how_often_a_run_speaks_may_change(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, 9, recipe(tmp_path), clips)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    train_codec(recipe(moved, log_every=1, validate_every=3, checkpoint_every=1), *clips, resume=True)
    weights = Path(CODEC_FOLDER, "model.safetensors")
    assert (moved / weights).read_bytes() == (straight / weights).read_bytes()


@pytest.mark.parametrize("place", ["before the step", "inside the optimiser", "after the last step"])
def test_ctrl_c_at_a_bad_moment_still_saves_a_whole_step(
    tmp_path: Path,
    straight: Path,
    clips: tuple[ClipArray, ClipArray],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """A step that has begun is finished: half of an update must never be saved as if it were the whole."""
    with monkeypatch.context() as patch:
        if place == "before the step":
            at_step(patch, 5, lambda trainer: signal.raise_signal(signal.SIGINT))
        else:
            at_step(patch, 5 if place == "inside the optimiser" else STEPS - 1, interrupt_the_optimiser)
        with pytest.raises(KeyboardInterrupt) as caught:
            train_codec(recipe(tmp_path), *clips)
    step = STEPS if place == "after the last step" else 6
    folder = step_folder(tmp_path, step)
    assert str(caught.value) == f"stopped at step {step}; {folder} is saved, add --resume to go on"
    assert load_state(folder).state["step"] == step
    train_codec(recipe(tmp_path), *clips, resume=True)
    assert_same_run(tmp_path, straight)


def interrupt_the_optimiser(trainer: CodecTrainer) -> None:
    """Send SIGINT when the next update has changed some of the parameters."""
    update, count = trainer.engine.optimizer._adam, iter(range(1000))  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> None:
        update(*arguments)
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)

    trainer.engine.optimizer._adam = counted  # type: ignore[attr-defined]


def test_a_second_ctrl_c_stops_at_once(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(trainer: CodecTrainer) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train_codec(recipe(tmp_path), *clips)
    assert "saved" not in str(caught.value)
    assert newest_valid(tmp_path).step == 4


def test_a_run_in_a_thread_cannot_take_signals_and_does_not_try(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    thread = threading.Thread(target=lambda: train_codec(recipe(tmp_path), *clips))
    thread.start()
    thread.join()
    assert_same_run(tmp_path, straight)


# A run of its own process that says when it is about to begin step 7, and then takes its time.
PROGRAM = """
import json, sys, time
from tokvid import runtime
from tokvid.cli import main as command
from tokvid.config import from_mapping
from tokvid.data.clips import materialise, open_clips
from tokvid_tokenizers.training import CodecTrainer, train_codec
from tokvid_tokenizers.training_config import CodecRecipe

recipe = from_mapping(CodecRecipe, json.loads(sys.argv[1]))
batch = CodecTrainer.batch

def slow(trainer, step):
    if trainer.step >= 6:
        if trainer.step == 6:
            print("step 6 is done", flush=True)
        time.sleep(float(sys.argv[2]))
    return batch(trainer, step)

CodecTrainer.batch = slow
runtime.usable_cores = lambda: 1
command._dispatch = lambda arguments: train_codec(recipe, *(materialise(open_clips(recipe.data, s)) for s in arguments))
sys.exit(command.main(["train", "held_out"]))
"""


def start(recipe: CodecRecipe, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(to_mapping(recipe)), str(seconds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tokenizers")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor SIGINT for one process")
def test_real_processes_killed_and_interrupted(
    tmp_path: Path, straight: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    # Both at once: most of their time is importing.
    killed = start(recipe(tmp_path / "killed"), 60.0)
    stopped = start(recipe(tmp_path / "stopped"), 0.3)
    try:
        for process, number in ((stopped, signal.SIGINT), (killed, signal.SIGKILL)):
            assert process.stdout is not None and process.stdout.readline() == "step 6 is done\n"
            process.send_signal(number)
        _, errors = stopped.communicate(timeout=60)
        killed.communicate(timeout=60)
    finally:
        for process in (killed, stopped):
            process.kill()
    assert killed.returncode == -signal.SIGKILL
    assert newest_valid(tmp_path / "killed").step == 4
    assert not (tmp_path / "killed" / CODEC_FOLDER).exists()

    assert stopped.returncode == 130
    saved = newest_valid(tmp_path / "stopped")
    assert saved.path is not None and 7 <= saved.step < STEPS
    last = errors.splitlines()[-1]
    assert last == f"interrupted: stopped at step {saved.step}; {saved.path} is saved, add --resume to go on"
    assert "Traceback" not in errors

    for name in ("killed", "stopped"):
        train_codec(recipe(tmp_path / name), *clips, resume=True)
    assert_same_run(tmp_path / "killed", straight)
    # Stopped between two log lines, the second of them speaks of the steps after the stop alone.
    weights = Path(CODEC_FOLDER, "model.safetensors")
    assert (tmp_path / "stopped" / weights).read_bytes() == (straight / weights).read_bytes()
    assert lines(tmp_path / "stopped")[-1] == lines(straight)[-1]


def test_a_checkpoint_of_another_kind_of_training_is_refused(
    tmp_path: Path, clips: tuple[ClipArray, ClipArray]
) -> None:
    save_state(step_folder(tmp_path, 4), {}, {"step": 4, "optimizer": {}})
    with pytest.raises(CheckpointError, match="is of another kind of training: give this run another output folder"):
        train_codec(recipe(tmp_path), *clips, resume=True)
