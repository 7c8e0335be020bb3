"""The DeepSpeed JSON of a recipe, read and checked before anything is done. DeepSpeed itself is not imported."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokvid.errors import ConfigError


def read_deepspeed(name: str | None) -> dict[str, Any] | None:
    """The settings in the file ``name`` as the Trainer takes them; None for None.

    Raises :class:`ConfigError` for a file that cannot be read, settings that would train otherwise than the recipe
    says, and where DeepSpeed is not installed.
    """
    if name is None:
        return None
    path = Path(name)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"training.deepspeed: cannot read {path} as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: DeepSpeed's settings are a mapping, got {type(settings).__name__}")
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f'{path}: "zero_optimization" is a mapping with a "stage" in it, got {json.dumps(zero)}')
    if zero.get("stage", 0) not in (0, 1, 2):
        raise ConfigError(
            f"{path}: ZeRO stage {json.dumps(zero['stage'])} cannot be used, because from 3 on the model that is saved"
            " at the end is scattered; use stage 0, 1 or 2"
        )
    if "gradient_clipping" not in settings:
        # DeepSpeed would clip at 1.0 whatever the recipe says.
        raise ConfigError(f'{path}: write "gradient_clipping": "auto" (the recipe\'s value), DeepSpeed\'s own is 1.0')
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "training.deepspeed needs the package deepspeed, which is not installed: pip install 'tokvid[deepspeed]',"
            " or leave training.deepspeed out"
        )
    return settings
