"""Settings of optimizers that cannot work are refused when the recipe is read, by name, not when torch meets them."""

from __future__ import annotations

import math

import pytest

from tokvid.cli import main as command
from tokvid.errors import ConfigError
from tokvid.optimizer import AdamWConfig, MuonConfig


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", wrong) for wrong in (0.0, -1.0, math.nan, math.inf)),
        *(("weight_decay", wrong) for wrong in (-1.0, math.nan, math.inf)),
        *(("betas", wrong) for wrong in ((2.0, 2.0), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan))),
    ],
)
def test_an_impossible_setting_is_refused(kind: type[AdamWConfig | MuonConfig], name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must "):
        kind(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("adam_learning_rate", wrong) for wrong in (0.0, math.nan, math.inf)),
        *(("momentum", wrong) for wrong in (5.0, 1.0, -0.1, math.nan)),
    ],
)
def test_an_impossible_setting_of_muon_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must "):
        MuonConfig(**{name: value})  # type: ignore[arg-type]


def test_the_bounds_themselves_are_possible() -> None:
    AdamWConfig(learning_rate=1e-9, weight_decay=0.0, betas=(0.0, 0.0))
    MuonConfig(learning_rate=1e30, weight_decay=0.0, momentum=0.0, betas=(0.0, 0.999999))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--training.optimizer={kind: adamw, betas: [2, 2]}", "training.optimizer: betas must lie in [0, 1)"),
        ("--training.optimizer={kind: muon, momentum: 5}", "training.optimizer: momentum must lie in [0, 1)"),
        ("--training.optimizer={kind: adamw, learning_rate: .nan}", "training.optimizer: learning_rate must be"),
        ("--training.loss={l2: .nan}", "training.loss: l2 must be"),
    ],
)
def test_a_recipe_that_sets_it_is_one_line(override: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["train", "codec/sprites-tiny", override]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")
