"""DeepSpeed's JSON of a recipe, read and checked before anything is done; DeepSpeed itself is imported only when asked.

A JSON says how a model is cut up. What a recipe says (batches, rates, clipping, precision) stands in it as "auto".
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokvid.errors import ConfigError, did_you_mean
from tokvid.shipped import recipes_folder

_GATHERED = "stage3_gather_16bit_weights_on_model_save"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: '"auto" or a word', dict: "a mapping"}
_SETTINGS: dict[str, tuple[type, ...]] = {
    "gradient_clipping": (int, float, str),
    "gradient_accumulation_steps": (int, str),
    "train_batch_size": (int, str),
    "train_micro_batch_size_per_gpu": (int, str),
    "bf16": (dict,),
    "zero_optimization": (dict,),
    "zero_force_ds_cpu_optimizer": (bool,),
    "zero_allow_untested_optimizer": (bool,),
    "communication_data_type": (str,),
    "steps_per_print": (int,),
    "wall_clock_breakdown": (bool,),
    "memory_breakdown": (bool,),
    "dump_state": (bool,),
}
"""What is handed on, and of which types. DeepSpeed itself passes over a name that it does not know."""
_ZERO = (
    *("stage", "reduce_scatter", "reduce_bucket_size", "allgather_partitions", "allgather_bucket_size", "overlap_comm"),
    *(
        "contiguous_gradients",
        "round_robin_gradients",
        "sub_group_size",
        "offload_optimizer",
        "offload_param",
        _GATHERED,
    ),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
)
"""The same of ``zero_optimization``; its types are DeepSpeed's to check."""
_SUMMED_IN = ("fp16", "bf16", "fp32")
_LEFT_OUT = ("optimizer", "scheduler", "fp16", "amp", "torch_autocast", "bfloat16")


def read_deepspeed(name: str | None) -> dict[str, Any] | None:
    """The settings in the file ``name``, or in the one of that name that comes with tokvid (``zero2``); None for None.

    Raises :class:`ConfigError` for a file that cannot be read, settings that would train otherwise than the recipe
    says, and where DeepSpeed is not installed.
    """
    if name is None:
        return None
    path = _find(name)
    try:
        text = path.read_text(encoding="utf-8")
        settings: dict[str, Any] = json.loads(text, object_pairs_hook=_each_once)
    except (OSError, ValueError) as error:
        raise ConfigError(f"training.deepspeed: cannot read {path} as JSON: {error}") from error
    _check_names(path, settings)
    _check_stage(path, settings)
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "training.deepspeed needs the package deepspeed, which is not installed: pip install 'tokvid[deepspeed]',"
            " or leave training.deepspeed out"
        )
    _check_zero(path, settings)
    return settings


def _check_names(path: Path, settings: object) -> None:
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: DeepSpeed's settings are a mapping, got {type(settings).__name__}")
    for name, value in settings.items():
        if name in _LEFT_OUT:
            raise ConfigError(f"{path}: leave {name!r} out: the recipe has an optimizer and a precision")
        if name not in _SETTINGS:
            raise ConfigError(f"{path}: {name!r} is nothing that tokvid hands on: {did_you_mean(name, _SETTINGS)}")
        kinds = _SETTINGS[name]
        if type(value) not in kinds:
            words = " or ".join(_KINDS[kind] for kind in kinds)
            raise ConfigError(f"{path}: {name!r} must be {words}, got {json.dumps(value)}")
    if "gradient_clipping" not in settings:
        # DeepSpeed would clip at 1.0 whatever the recipe says.
        raise ConfigError(f'{path}: write "gradient_clipping": "auto" (the recipe\'s value), DeepSpeed\'s own is 1.0')
    if settings.get("communication_data_type", "fp32") not in _SUMMED_IN:
        raise ConfigError(f"{path}: 'communication_data_type' is one of {', '.join(_SUMMED_IN)}")
    strange = [name for name in settings.get("bf16", {}) if name != "enabled"]
    if strange:
        raise ConfigError(f'{path}: leave {strange[0]!r} out of "bf16", which has "enabled" alone')


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that is given twice JSON keeps the last without a word."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return dict(pairs)


def _check_stage(path: Path, settings: Mapping[str, Any]) -> None:
    zero = settings.get("zero_optimization", {})
    for name in zero:
        if name not in _ZERO:
            raise ConfigError(
                f"{path}: zero_optimization.{name} is nothing that tokvid hands on: {did_you_mean(name, _ZERO)}"
            )
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: there is no ZeRO stage {json.dumps(stage)}: use 0, 1, 2 or 3")
    if stage == 3 and zero.get(_GATHERED) is not True:
        raise ConfigError(f'{path}: write "{_GATHERED}": true in zero_optimization, else checkpoints lack the weights')


def _check_zero(path: Path, settings: Mapping[str, Any]) -> None:
    """By DeepSpeed's own reader, and for what that reads and DeepSpeed then does not do."""
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        zero = DeepSpeedZeroConfig(**settings.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    moved = {
        name: part is not None and part.device != "none"
        for name, part in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_param))
    }
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        if moved[name] and getattr(zero, name).device == "nvme":
            raise ConfigError(f"{path}: {name}: the device nvme was never tried with tokvid: use cpu")
        if moved[name] and zero.stage < least:
            raise ConfigError(f"{path}: {name} is of ZeRO stages from {least} on, here it is {int(zero.stage)}")
    if moved["offload_optimizer"] and settings.get("zero_force_ds_cpu_optimizer") is not False:
        # DeepSpeed's own optimizer would be compiled at the first start.
        raise ConfigError(f'{path}: beside offload_optimizer write "zero_force_ds_cpu_optimizer": false')


def check_agreement(settings: Mapping[str, Any], recipe: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` where ``settings`` contradict a value of the ``recipe``, by DeepSpeed's name."""
    for name, value in recipe.items():
        if settings.get(name, "auto") not in ("auto", value):
            raise ConfigError(f'training.deepspeed: {name} is {settings[name]}, the recipe says {value}; write "auto"')


def zero_stage(settings: Mapping[str, Any] | None) -> int:
    """The ZeRO stage of DeepSpeed's ``settings``; 0 without."""
    return int((settings or {}).get("zero_optimization", {}).get("stage", 0))


def expect_its_accelerator() -> None:
    """Before anybody imports DeepSpeed, as accelerate does where it is: it would warn that there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@functools.cache
def import_deepspeed() -> Any:
    """DeepSpeed, which builds nothing just in time, and says what it has to say on stderr."""
    expect_its_accelerator()
    import deepspeed

    # At every collective, of names of torch that DeepSpeed still uses.
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    # Faster sums on one machine without a GPU; at the first start it would be compiled for two minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for handler in logging.getLogger("DeepSpeed").handlers:
        if type(handler) is logging.StreamHandler:  # not those of who else listens
            with suppress(ValueError):  # whoever imported it before may have closed what stdout was then
                handler.flush()
            handler.stream = sys.stderr
    return deepspeed


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return path
    known = {file.stem: file for file in sorted((recipes_folder() / "deepspeed").glob("*.json"))}
    if name not in known:
        raise ConfigError(
            f"training.deepspeed: no file and no JSON that comes with tokvid is called {name!r}:"
            f" {did_you_mean(name, known)}"
        )
    return known[name]
