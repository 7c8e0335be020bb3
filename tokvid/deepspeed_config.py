"""DeepSpeed's JSON of a recipe, read and checked before anything is done; DeepSpeed itself is imported only when asked.

A JSON says how a model is cut up. What a recipe says (batches, rates, clipping, precision) stands in it as "auto".
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokvid.errors import ConfigError, did_you_mean
from tokvid.shipped import recipes_folder

_GATHERED = "stage3_gather_16bit_weights_on_model_save"


def read_deepspeed(name: str | None) -> dict[str, Any] | None:
    """The settings in the file ``name``, or in the one of that name that comes with tokvid (``zero2``); None for None.

    Raises :class:`ConfigError` for a file that cannot be read, settings that would train otherwise than the recipe
    says, and where DeepSpeed is not installed.
    """
    if name is None:
        return None
    path = _find(name)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"training.deepspeed: cannot read {path} as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: DeepSpeed's settings are a mapping, got {type(settings).__name__}")
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f'{path}: "zero_optimization" is a mapping with a "stage" in it, got {json.dumps(zero)}')
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"{path}: there is no ZeRO stage {json.dumps(stage)}: use 0, 1, 2 or 3")
    if stage == 3 and zero.get(_GATHERED) is not True:
        raise ConfigError(f'{path}: write "{_GATHERED}": true in zero_optimization, else checkpoints lack the weights')
    if "gradient_clipping" not in settings:
        # DeepSpeed would clip at 1.0 whatever the recipe says.
        raise ConfigError(f'{path}: write "gradient_clipping": "auto" (the recipe\'s value), DeepSpeed\'s own is 1.0')
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "training.deepspeed needs the package deepspeed, which is not installed: pip install 'tokvid[deepspeed]',"
            " or leave training.deepspeed out"
        )
    return settings


def check_agreement(settings: Mapping[str, Any], recipe: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` where ``settings`` contradict a value of the ``recipe``, by DeepSpeed's name."""
    for name, value in recipe.items():
        if settings.get(name, "auto") not in ("auto", value):
            raise ConfigError(f'training.deepspeed: {name} is {settings[name]}, the recipe says {value}; write "auto"')
    for name in ("optimizer", "scheduler", "fp16", "torch_autocast"):
        if name in settings:
            raise ConfigError(f"training.deepspeed: leave {name!r} out: the recipe has an optimizer and a precision")


def zero_stage(settings: Mapping[str, Any] | None) -> int:
    """The ZeRO stage of DeepSpeed's ``settings``; 0 without."""
    return int((settings or {}).get("zero_optimization", {}).get("stage", 0))


@functools.cache
def import_deepspeed() -> Any:
    """DeepSpeed, which builds nothing just in time, and says what it has to say on stderr."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

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
    if path.suffix == ".json" or path.exists():
        return path
    known = {file.stem: file for file in sorted((recipes_folder() / "deepspeed").glob("*.json"))}
    if name not in known:
        raise ConfigError(
            f"training.deepspeed: no file and no JSON that comes with tokvid is called {name!r}:"
            f" {did_you_mean(name, known)}"
        )
    return known[name]
