"""The JSON files of what was saved: a mapping, or one line that says what is wrong with the file.

What the mapping means is not known here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokvid.errors import CheckpointError


def read_mapping(path: Path, whole: str) -> dict[str, Any]:
    """The mapping in ``path``, a part of every whole ``whole`` ("codec", say).

    Raises :class:`CheckpointError` for a file that is missing or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: this is no whole {whole}; save it again") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the {whole} again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__} where a mapping belongs; save the {whole} again")
    return data
