"""What a recipe chooses, and what of it cannot run and is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.lm.tiny import build_model
from tests.lm.tiny_run import MODEL, recipe, train
from tokvid.config import from_mapping, to_mapping
from tokvid.errors import ConfigError, DataError
from tokvid.optimizer import MuonConfig, build_optimizer
from tokvid_lm.training import adam_names, learning_rate_share
from tokvid_lm.training_config import LMRecipe, LMTrainingConfig
from tokvid_tokenizers import VideoCodec


def test_schedules_rise_and_fall_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        config = from_mapping(LMTrainingConfig, {"steps": 100, "warmup_steps": 10, "schedule": schedule})
        shares = [learning_rate_share(config, step) for step in range(101)]
        assert shares[0] < 0.1 and max(shares) == pytest.approx(1.0) and shares[100] == 0.0
        assert shares[:11] == sorted(shares[:11]) and shares[10:] == sorted(shares[10:], reverse=True)


def test_recipes_that_cannot_run_are_refused(codec: VideoCodec, tmp_path: Path) -> None:
    assert from_mapping(LMRecipe, to_mapping(recipe(tmp_path))) == recipe(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'prompt_drop'"):
        recipe(tmp_path, promptdrop=0.1)
    with pytest.raises(ConfigError, match="Muon needs whole matrices"):
        recipe(tmp_path, deepspeed="x.json", optimizer={"kind": "muon"})
    # What is longer than the clips would silently be whole clips.
    with pytest.raises(ConfigError, match=r"curriculum\[1\]\.latent_frames is 3, but the clips have 2 latent frames"):
        stages = [{"steps": 1, "latent_frames": n, "batch_size": 4} for n in (2, 3)]
        train(recipe(tmp_path, curriculum=stages), codec)
    short = from_mapping(LMRecipe, {**to_mapping(recipe(tmp_path)), "model": {**MODEL, "max_positions": 16}})
    with pytest.raises(DataError, match=r"the model reads 16: shorten the caption of train-\d{6} \(\d+ ids\)"):
        train(short, codec)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, r"cannot read .*settings\.json as JSON"),
        ("{", r"cannot read .*settings\.json as JSON"),
        ("[]", "a mapping, got list"),
        ('{"zero_optimization": null}', '"zero_optimization" is a mapping .*, got null'),
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3 cannot be used"),
        ('{"zero_optimization": {"stage": "auto"}}', 'ZeRO stage "auto" cannot be used'),
        ("{}", '"gradient_clipping": "auto"'),
        ('{"gradient_clipping": "auto"}', r"not installed: pip install 'tokvid\[deepspeed\]'"),
    ],
)
def test_what_is_wrong_with_deepspeed_is_said_before_anything_is_done(
    settings: str | None, words: str, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokvid.deepspeed_config.find_spec", lambda name: None)
    path = tmp_path / "settings.json"
    if settings is not None:
        path.write_text(settings, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        train(recipe(tmp_path / "run", deepspeed=str(path)), codec)
    assert not (tmp_path / "run").exists()


def test_muon_leaves_every_table_of_ids_and_positions_to_adam() -> None:
    shape = {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    gpt2 = GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=False))
    tables = {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}
    assert set(adam_names(gpt2)) == tables
    optimizer = build_optimizer(MuonConfig(), gpt2, adam_names=adam_names(gpt2))
    (muon,) = [group for group in optimizer.param_groups if group["rule"] == "muon"]
    names = {id(parameter): name for name, parameter in gpt2.named_parameters()}
    chosen = {names[id(parameter)] for parameter in muon["params"]}
    assert not chosen & tables and all(name.startswith("transformer.h.0.") for name in chosen) and len(chosen) == 4
    assert adam_names(build_model("llama", tied=True)) == ["model.embed_tokens.weight"]
    assert "gpt_neox.embed_in.weight" in adam_names(build_model("gpt_neox"))
