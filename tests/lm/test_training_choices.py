"""What a recipe chooses, and what of it cannot run and is refused before anything is done."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from tests.lm.tiny import build_model
from tests.lm.tiny_run import MODEL, recipe, train
from tokvid.cluster import Cluster
from tokvid.config import from_mapping, to_mapping
from tokvid.deepspeed_config import zero_stage
from tokvid.errors import CheckpointError, ConfigError, DataError, ModelError
from tokvid.optimizer import MuonConfig, build_optimizer
from tokvid.recipe import load_recipe
from tokvid.training_log import read_log
from tokvid_lm import TextSegment, VideoLM
from tokvid_lm.document import IGNORED
from tokvid_lm.mixture import MixtureConfig
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.plan import plan_lm
from tokvid_lm.training import adam_names, deepspeed_settings, learning_rate_share
from tokvid_lm.training_config import LMEvaluationConfig, LMRecipe, LMTrainingConfig, TrainedModelConfig
from tokvid_tokenizers import VideoCodec, load_codec


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
    with pytest.raises(
        ConfigError, match="guides in the mode next_token, for which captions must sometimes be dropped"
    ):
        recipe(tmp_path, prompt_drop=0.0)
    # What is longer than the clips would silently be whole clips.
    with pytest.raises(ConfigError, match=r"curriculum\[1\]\.latent_frames is 3, but the clips have 2 latent frames"):
        stages = [{"steps": 1, "latent_frames": n, "batch_size": 4} for n in (2, 3)]
        train(recipe(tmp_path, curriculum=stages), codec)
    short = from_mapping(LMRecipe, {**to_mapping(recipe(tmp_path)), "model": {**MODEL, "max_positions": 16}})
    with pytest.raises(DataError, match=r"the model reads 16: shorten the caption of train-\d{6} \(\d+ ids\)"):
        train(short, codec)


def test_the_pieces_of_recipes_in_the_page_go_into_the_recipe_that_it_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "video-language-models.md").read_text(encoding="utf-8")
    pieces = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    assert len(pieces) >= 2
    for piece in pieces:
        whole = load_recipe("lm/sprites-modes")
        training = {**whole["training"], **piece.get("training", {})}
        from_mapping(LMRecipe, {**whole, **piece, "training": training})


def test_a_run_of_captions_alone_draws_no_videos(codec: VideoCodec, tmp_path: Path) -> None:
    plain = replace(recipe(tmp_path, steps=3), evaluation=LMEvaluationConfig(clips=1))
    mixture = tuple(MixtureConfig(objective=objective) for objective in ("caption", "text"))  # type: ignore[arg-type]
    trained = train(replace(plain, training=replace(plain.training, mixture=mixture)), codec)
    assert set(trained.losses.validation) == {"caption", "text"}
    assert "share_below_unigram" not in trained.losses.figures() and trained.lm.settings.sampling == ()
    again = VideoLM.from_pretrained(trained.folder)
    with pytest.raises(ModelError, match="not trained to draw videos"):
        again.generate([TextSegment("a cat")])


def test_a_trained_model_learns_on(codec: VideoCodec, tmp_path: Path) -> None:
    first = train(recipe(tmp_path / "first"), codec)
    codec.save_pretrained(tmp_path / "codec")
    on = replace(recipe(tmp_path / "on", warmup_steps=7), model=TrainedModelConfig(name=str(first.folder)))
    second = train(on, codec)
    before, began = (read_log(tmp_path / name / "log.jsonl") for name in ("first", "on"))
    # The first batches are those of the first run, and what it had learned is there.
    assert before[0]["loss"] > 1.02 * before[-1]["loss"] > began[0]["loss"] > second.losses.validation["next_token"]
    assert second.losses.validation["next_token"] < first.losses.validation["next_token"]
    assert second.lm.tokenizer.get_vocab() == first.lm.tokenizer.get_vocab()
    plan = plan_lm(on, codec, Cluster())
    assert plan["model"]["ids"] == first.lm.vocabulary.total_size
    with pytest.raises(ConfigError, match="made with other documents than the recipe's: set template=rows"):
        train(replace(on, template="emu3", output=str(tmp_path / "other")), codec)
    with pytest.raises(ConfigError, match=r"speaks the codes of .*: set codec to the one in it"):
        train(replace(on, output=str(tmp_path / "other")), load_codec("preset:tiny", seed=3))
    with pytest.raises(CheckpointError, match="this folder holds no VideoLM"):
        train(replace(on, model=TrainedModelConfig(name=str(tmp_path)), output=str(tmp_path / "other")), codec)


def test_the_loss_is_divided_by_the_number_of_labels(
    codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first id of a row has one, as captions alone have."""
    seen: list[tuple[int, int]] = []
    plain = VideoObjective.__call__

    def counted(self: VideoObjective, *args: Any, **inputs: Any) -> Any:
        if inputs.get("num_items") is not None:
            seen.append((int(inputs["num_items"]), int((inputs["labels"] != IGNORED).sum())))
        return plain(self, *args, **inputs)

    monkeypatch.setattr(VideoObjective, "__call__", counted)
    train(recipe(tmp_path, steps=3, score_text=True), codec)
    assert len(seen) == 3 and all(divisor == labels for divisor, labels in seen)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, r"cannot read .*settings\.json as JSON"),
        ("{", r"cannot read .*settings\.json as JSON"),
        ("[]", "a mapping, got list"),
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient_clipping": 3.0}, r"gradient_clipping is 3.0, the recipe says 1.0; write \"auto\""),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, the recipe says 1"),
        ({"bf16": {"enabled": False}}, 'write "bf16": {"enabled": "auto"}'),
    ],
)
def test_deepspeed_settings_that_contradict_the_recipe_are_refused(
    settings: dict[str, Any], words: str, codec: VideoCodec, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"gradient_clipping": "auto"} | settings), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        train(recipe(tmp_path / "run", deepspeed=str(path)), codec)


def test_deepspeed_settings_come_by_name(codec: VideoCodec, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    names = ["zero0", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload"]
    found = [deepspeed_settings(recipe(tmp_path, deepspeed=name)) for name in names]
    assert [zero_stage(settings) for settings in found] == [0, 1, 2, 2, 3, 3]
    with pytest.raises(ConfigError, match="is called 'zero4': did you mean 'zero"):
        train(recipe(tmp_path / "run", deepspeed="zero4"), codec)
    adapted = {
        **to_mapping(recipe(tmp_path, deepspeed="zero3")),
        "model": {"kind": "pretrained", "name": "x", "lora": {}},
    }
    with pytest.raises(ConfigError, match="ZeRO 3 is for whole models with positions 1d"):
        train(from_mapping(LMRecipe, adapted), codec)


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
