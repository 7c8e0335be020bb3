"""DeepSpeed with two processes on a processor: every ZeRO stage learns what one process learns, and resumes exactly."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.integration.processes import run as run_command
from tests.integration.processes import succeed, torchrun
from tests.lm.tiny_run import recipe, train
from tokvid.checkpoint import check_same_run, newest_valid
from tokvid.cli.main import main
from tokvid.config import to_mapping
from tokvid.errors import CheckpointError
from tokvid.run_lock import only_run
from tokvid.shipped import recipes_folder
from tokvid.training_log import read_log
from tokvid_lm import VideoLM
from tokvid_lm.resuming import run_facts
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers import VideoCodec

STEPS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process alone"),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]


def run(output: Path, **training: Any) -> LMRecipe:
    settings = {"steps": STEPS, "validate_every": 1, "checkpoint_every": 10}
    return recipe(output, **{**settings, **training})


def launch(recipe: LMRecipe, *arguments: str, processes: int = 2) -> dict[str, Any]:
    """The figures of a run that went well."""
    path = Path(f"{recipe.output}.yaml")
    path.write_text(yaml.safe_dump(to_mapping(recipe)), encoding="utf-8")
    done = run_command(*torchrun(processes), "-m", "tokvid", "train", path, *arguments, cwd=path.parent)
    figures = succeed(done)
    assert "Building extension" not in done.stderr + done.stdout, "nothing is built just in time"
    printed: dict[str, Any] = json.loads(figures)
    return printed


def bits(output: Path) -> list[float]:
    """On held-out clips after each step but the last."""
    found = [line["held-out bits (next_token)"] for line in read_log(output / "log.jsonl")[:-1]]
    assert len(found) == STEPS - 1
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_learn_what_one_does(stage: int, precision: str, codec: VideoCodec, tmp_path: Path) -> None:
    launch(run(tmp_path / "two", precision=precision, deepspeed=f"zero{stage}"))
    train(run(tmp_path / "one", precision=precision, gradient_accumulation=2), codec)
    # DeepSpeed's bfloat16 is that of weights too, torch's that of the arithmetic alone: near, and no more.
    assert bits(tmp_path / "two") == pytest.approx(bits(tmp_path / "one"), rel=2e-2 if precision == "bf16" else 1e-4)
    losses = [[line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if precision == "bf16" else 1e-4)
    together, alone = (VideoLM.from_pretrained(tmp_path / name / "lm").model for name in ("two", "one"))
    expected = alone.state_dict()
    assert set(together.state_dict()) == set(expected)
    for name, tensor in together.state_dict().items() if precision == "fp32" else ():
        assert (tensor - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def test_a_run_goes_on_under_the_settings_that_it_began_with(codec: VideoCodec, tmp_path: Path) -> None:
    """By what the file says: under one name it may say something else a day later."""
    shipped = json.loads((recipes_folder() / "deepspeed" / "zero1.json").read_text(encoding="utf-8"))
    (tmp_path / "mine.json").write_text(json.dumps(shipped), encoding="utf-8")
    told = run(tmp_path / "run", deepspeed=str(tmp_path / "mine.json"))
    documents = SimpleNamespace(digest=lambda: "the same")
    before = run_facts(told, codec, documents)  # type: ignore[arg-type]
    assert before == run_facts(run(tmp_path / "run", deepspeed="zero1"), codec, documents)  # type: ignore[arg-type]
    shipped["zero_optimization"]["stage"] = 2
    (tmp_path / "mine.json").write_text(json.dumps(shipped), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"training\.deepspeed\.zero_optimization\.stage was 1, here it is 2"):
        check_same_run(tmp_path, before, run_facts(told, codec, documents), others={})  # type: ignore[arg-type]


def test_without_a_launcher_it_is_a_process_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "lm.yaml"
    path.write_text(yaml.safe_dump(to_mapping(run(tmp_path / "run", deepspeed="zero2"))), encoding="utf-8")
    succeed(run_command(sys.executable, "-m", "tokvid", "train", path, cwd=tmp_path))
    assert (tmp_path / "run" / "lm" / "model.safetensors").exists()


NOT_FINITE = """
import sys
import torch
from tokvid.cli.main import main
from tokvid_lm.trainer import LMTrainer

class NotFinite(torch.autograd.Function):
    passes = 0

    @staticmethod
    def forward(ctx, loss):
        NotFinite.passes += 1
        ctx.wrong = NotFinite.passes == 5
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan") if ctx.wrong else gradient

of_a_pass = LMTrainer.compute_loss
def compute_loss(self, *arguments, **named):
    loss = of_a_pass(self, *arguments, **named)
    return NotFinite.apply(loss) if torch.is_tensor(loss) else loss
LMTrainer.compute_loss = compute_loss
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_gradients_that_are_not_finite_end_the_run(stage: int | None, precision: str, tmp_path: Path) -> None:
    """DeepSpeed would leave the step out, and all that follow, and say nothing."""
    (tmp_path / "program.py").write_text(NOT_FINITE, encoding="utf-8")
    settings = {"precision": precision, "steps": 8, "checkpoint_every": 2, "validate_every": 100}
    broken = run(tmp_path / "run", deepspeed=None if stage is None else f"zero{stage}", **settings)
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(to_mapping(broken)), encoding="utf-8")
    done = run_command(*torchrun(2), "program.py", "lm.yaml", cwd=tmp_path)
    what = "the weight '" if (stage, precision) == (0, "fp32") else "the loss part 'gradient norm' is "
    assert done.returncode != 0 and f"error: step 5: {what}" in done.stderr, done.stderr
    assert newest_valid(tmp_path / "run").step == 4


ONE_AFTER_ANOTHER = """
import sys
from pathlib import Path
from tests.lm.tiny_run import recipe, train
from tokvid_lm import VideoLM
from tokvid_tokenizers import load_codec
codec = load_codec("preset:tiny")
for number, deepspeed in enumerate(["zero3", "zero3", "zero1", None, "zero2"]):
    trained = train(recipe(Path(sys.argv[1], str(number)), steps=3, deepspeed=deepspeed), codec)
    VideoLM.from_pretrained(trained.folder)
"""


def test_one_process_trains_several_models_one_after_another(tmp_path: Path) -> None:
    program = tmp_path / "several.py"
    program.write_text(ONE_AFTER_ANOTHER, encoding="utf-8")
    succeed(run_command(sys.executable, program, tmp_path, cwd=tmp_path))
    assert all((tmp_path / str(number) / "lm" / "model.safetensors").exists() for number in range(5))


@pytest.mark.parametrize("settings", ["zero2-offload", "zero3-offload"])
def test_what_lies_on_the_processor_learns_the_same(settings: str, codec: VideoCodec, tmp_path: Path) -> None:
    launch(run(tmp_path / "two", deepspeed=settings))
    train(run(tmp_path / "one", gradient_accumulation=2), codec)
    assert bits(tmp_path / "two") == pytest.approx(bits(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_accumulated_passes_and_layers_computed_again_learn_the_same(
    stage: int, codec: VideoCodec, tmp_path: Path
) -> None:
    launch(run(tmp_path / "two", deepspeed=f"zero{stage}", gradient_accumulation=2, checkpoint_layers=True))
    train(run(tmp_path / "one", gradient_accumulation=4), codec)
    assert bits(tmp_path / "two") == pytest.approx(bits(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_ends_with_the_same_weights(stage: int, codec: VideoCodec, tmp_path: Path) -> None:
    settings = {"precision": "fp32", "deepspeed": f"zero{stage}", "keep_checkpoints": 9}
    launch(run(tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "lm")
    shutil.rmtree(tmp_path / "cut" / f"step-{STEPS:06d}")
    launch(run(tmp_path / "cut", **settings), "--resume")
    whole, cut = ((tmp_path / name / "lm" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize("stage", [1, 3])
def test_another_number_of_processes_goes_on_after_reshaping(
    stage: int, codec: VideoCodec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"precision": "fp32", "deepspeed": f"zero{stage}", "keep_checkpoints": 9}
    two = launch(run(tmp_path / "run", **settings))
    shutil.rmtree(tmp_path / "run" / f"step-{STEPS:06d}")
    alone = run(tmp_path / "run", **settings, gradient_accumulation=2)
    with pytest.raises(CheckpointError, match="was written by 2 processes, this run has 1: run 'tokvid reshape"):
        train(alone, codec, resume=True)
    with pytest.raises(CheckpointError, match="was trained with 2 passes a step in 2 processes, this run has 1 in 1"):
        train(run(tmp_path / "run", **settings), codec, resume=True)
    assert main(["reshape", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "step-000010")
    one = launch(alone, "--resume", processes=1)
    assert one["validation_nats"] == pytest.approx(two["validation_nats"], rel=1e-4)


@pytest.mark.parametrize("settings", [None, "zero0"])
@pytest.mark.parametrize(("began", "goes_on"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_where_each_holds_all(
    settings: str | None, began: int, goes_on: int, tmp_path: Path
) -> None:
    def passes(output: Path, processes: int) -> LMRecipe:
        return run(output, deepspeed=settings, keep_checkpoints=9, gradient_accumulation=2 // processes)

    whole = launch(passes(tmp_path / "run", began), processes=began)
    losses = bits(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / f"step-{STEPS:06d}")
    cut = launch(passes(tmp_path / "run", goes_on), "--resume", processes=goes_on)
    assert cut["validation_nats"] == pytest.approx(whole["validation_nats"], rel=1e-4)
    assert bits(tmp_path / "run") == pytest.approx(losses, rel=1e-4)


def test_only_checkpoints_of_deepspeed_are_reshaped(
    codec: VideoCodec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run(tmp_path / "run", steps=3), codec)
    assert main(["reshape", str(tmp_path / "run")]) == 2
    assert "is no checkpoint of DeepSpeed" in capsys.readouterr().err
    assert main(["reshape", str(tmp_path)]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err
    assert main(["reshape", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_is_under_way_is_not_reshaped(tmp_path: Path) -> None:
    with only_run(tmp_path):
        done = run_command(sys.executable, "-m", "tokvid", "reshape", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and f"another run (process {os.getpid()} on" in done.stderr
