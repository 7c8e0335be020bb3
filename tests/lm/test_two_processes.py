"""Two processes train one model: each learns from its part of a step, and the first alone writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.processes import run, succeed, tokvid, torchrun
from tests.lm.tiny_run import DATA, recipe, train
from tokvid.config import to_mapping
from tokvid.training_log import read_log
from tokvid_lm import VideoLM
from tokvid_lm.training import train_lm
from tokvid_lm.training_config import ShardDataConfig
from tokvid_tokenizers import VideoCodec

READS = """
import json, os
from pathlib import Path
from tests.lm.tiny_run import recipe
from tokvid_lm import training
from tokvid_lm.code_source import ShardClips
from tokvid_lm.training_config import ShardDataConfig
from dataclasses import replace
read, codes_of = [], ShardClips.codes_of
def noted(self, number):
    if len(self) == 24:
        read.append(number)
    return codes_of(self, number)
ShardClips.codes_of = noted
training.unigram_entropy = lambda clips: 1.0  # reads some of all, at the end, in the first process
run = replace(recipe(Path("two"), steps=8), data=ShardDataConfig(path="shards"), codec="codec")
training.train_lm(run)
Path(f"read-{os.environ['RANK']}.json").write_text(json.dumps(read))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process alone")
def test_each_process_reads_shards_of_its_own(codec: VideoCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "data.yaml").write_text(json.dumps({"data": DATA}), encoding="utf-8")
    command = ["tokenize", "data.yaml", "shards", "--codec", "codec", "--shard-clips", "6", "--workers", "1"]
    succeed(tokvid(*command, cwd=tmp_path))
    (tmp_path / "reads.py").write_text(READS, encoding="utf-8")
    succeed(run(*torchrun(2), "reads.py", cwd=tmp_path))
    first, second = (json.loads((tmp_path / f"read-{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == 8 * 4  # steps and rows
    assert set(first) == set(range(12)) and set(second) == set(range(12, 24)), "two shards of four each"

    shards = replace(
        recipe(tmp_path / "one", steps=8, gradient_accumulation=2), data=ShardDataConfig(path=str(tmp_path / "shards"))
    )
    alone = train_lm(shards, codec=codec)
    together = VideoLM.from_pretrained(tmp_path / "two" / "lm").model.state_dict()
    for name, tensor in alone.lm.model.state_dict().items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch trains in one process alone")
def test_two_processes_learn_what_two_passes_a_step_teach(codec: VideoCodec, tmp_path: Path) -> None:
    settings = {"steps": 4, "checkpoint_every": 2, "validate_every": 2}
    path = tmp_path / "lm.yaml"
    path.write_text(yaml.safe_dump(to_mapping(recipe(tmp_path / "two", **settings))), encoding="utf-8")
    done = run(*torchrun(2), "-m", "tokvid", "train", path, cwd=tmp_path)
    printed = json.loads(succeed(done))  # once, and whole
    assert printed["model"] == str(tmp_path / "two" / "lm") and printed["clips"] == 5
    assert [line["step"] for line in read_log(tmp_path / "two" / "log.jsonl")] == [1, 2, 3, 4]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1 and not list(tmp_path.rglob("*.tmp"))

    alone = train(recipe(tmp_path / "one", **settings, gradient_accumulation=2), codec)
    together = VideoLM.from_pretrained(tmp_path / "two" / "lm").model.state_dict()
    for name, tensor in alone.lm.model.state_dict().items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)
    # What the log says is of both, too.
    for ours, theirs in zip(*(read_log(tmp_path / name / "log.jsonl") for name in ("two", "one")), strict=True):
        names = [name for name in theirs if "bits" in name or name == "loss"]
        assert len(names) > 3
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-3)
    assert printed["validation_nats"] == pytest.approx(alone.losses.validation, rel=1e-4)
