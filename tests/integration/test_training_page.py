"""The page about training a codec: every piece of YAML on it is a part of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.processes import ROOT
from tokvid.config import from_mapping
from tokvid_tokenizers.quantizers import QuantizerConfig
from tokvid_tokenizers.training_config import CodecRecipe

PAGE = (ROOT / "docs" / "training-a-codec.md").read_text(encoding="utf-8")
PIECES = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: next(iter(next(iter(piece.values())))))
def test_a_piece_is_a_part_of_a_recipe(piece: dict[str, Any], tmp_path: Path) -> None:
    data = {"kind": "folder", "path": str(tmp_path), "size": [256, 256]}
    whole = {"output": str(tmp_path), "data": data, **piece}
    whole["training"] = {"steps": 100_000, **piece.get("training", {})}
    from_mapping(CodecRecipe, whole)


def test_every_quantizer_is_on_it() -> None:
    named = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")))
    )
    assert named == {config.__dataclass_fields__["kind"].default for config in QuantizerConfig.__args__}  # type: ignore[attr-defined]
