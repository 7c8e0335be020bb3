"""DeepSpeed's settings as people write them: what DeepSpeed would pass over, or end in a traceback for, is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokvid.deepspeed_config import check_agreement, read_deepspeed, zero_stage
from tokvid.errors import ConfigError

CPU = {"device": "cpu"}


def written(folder: Path, settings: Any) -> str:
    path = folder / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"zero_optimization": None}, "'zero_optimization' must be a mapping, got null"),
        ({"zero_optimization": [{"stage": 2}]}, "'zero_optimization' must be a mapping, got"),
        ({"zero_optimization": {"stage": 3}}, 'write "stage3_gather_16bit_weights_on_model_save": true'),
        ({"zero_optimization": {"stage": "auto"}}, 'there is no ZeRO stage "auto"'),
        ({"zero_optimization": {"stage": "2"}}, 'there is no ZeRO stage "2"'),
        ({"zero_optimization": {"stage": [2]}}, r"there is no ZeRO stage \[2\]"),
        ({"zero_optimization": {"stage": True}}, "there is no ZeRO stage true"),
        ({"zero_optimization": {"stage": 4}}, "there is no ZeRO stage 4"),
        ({"gradient_clipping": [1.0]}, r"'gradient_clipping' must be a whole number or a number or .*, got \[1.0\]"),
        ({"gradient_clipping": True}, "'gradient_clipping' must be .*, got true"),
        ({"train_micro_batch_size_per_gpu": None}, "'train_micro_batch_size_per_gpu' must be a whole number"),
        ({"bf16": True}, "'bf16' must be a mapping, got true"),
        ({"bf16": {"enable": True}}, "leave 'enable' out of \"bf16\""),
        *(
            ({name: {"enabled": True}}, f"leave '{name}' out: the recipe has an optimizer and a precision")
            for name in ("optimizer", "scheduler", "fp16", "amp", "bfloat16", "torch_autocast")
        ),
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation' is nothing .*: did you mean 'zero_optimization'"),
        ({"communication_data_type": "foo"}, "'communication_data_type' is one of fp16, bf16, fp32"),
        ({"prescale_gradients": True}, "'prescale_gradients' is nothing that tokvid hands on"),
    ],
)
def test_what_is_malformed_is_named(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read_deepspeed(written(tmp_path, {"gradient_clipping": "auto", **settings}))


def test_what_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    path.write_text('{"gradient_clipping": "auto", "zero_optimization": {"stage": 1, "stage": 2}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot read .* as JSON: 'stage' is given twice"):
        read_deepspeed(str(path))


def test_a_folder_does_not_hide_what_comes_with_tokvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "zero2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert zero_stage(read_deepspeed("zero2")) == 2


def test_clipping_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"gradient_clipping": "auto"'):
        read_deepspeed(written(tmp_path, {}))


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        ({"reduce_bucket_size": "many"}, "zero_optimization.reduce_bucket_size: Input should be a valid integer"),
        ({"reduce_buckets_size": 9}, "zero_optimization.reduce_buckets_size is nothing .* mean 'reduce_bucket_size'"),
        ({"zero_quantized_weights": True}, "zero_optimization.zero_quantized_weights is nothing that tokvid hands on"),
        ({"offload_optimizer": {"device": "nvme"}}, "the device nvme was never tried with tokvid: use cpu"),
        ({"offload_optimizer": "cpu"}, "zero_optimization.offload_optimizer: Input should be a valid dictionary"),
        ({"offload_optimizer": {"device": "gpu"}}, "offload_optimizer.device: Input should be 'none', 'cpu' or 'nvme'"),
        ({"offload_optimizer": CPU}, 'beside offload_optimizer write "zero_force_ds_cpu_optimizer": false'),
        ({"offload_param": CPU}, "offload_param is of ZeRO stages from 3 on, here it is 2"),
        ({"stage": 0, "offload_optimizer": CPU}, "offload_optimizer is of ZeRO stages from 1 on, here it is 0"),
    ],
)
def test_what_zero_does_not_take_is_named(zero: dict[str, Any], words: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    with pytest.raises(ConfigError, match=words):
        read_deepspeed(written(tmp_path, {"gradient_clipping": "auto", "zero_optimization": {"stage": 2, **zero}}))


def test_what_is_whole_is_handed_on(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    zero = {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True, "offload_optimizer": CPU}
    settings = {"gradient_clipping": 1, "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}
    read = read_deepspeed(written(tmp_path, settings))
    assert read == settings and zero_stage(read) == 2
    check_agreement(settings, {"gradient_clipping": 1.0, "train_batch_size": 4})
    with pytest.raises(ConfigError, match=r"gradient_clipping is 1, the recipe says 0.5; write \"auto\""):
        check_agreement(settings, {"gradient_clipping": 0.5})
