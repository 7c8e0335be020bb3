"""A plan against what is measured: parameters, arithmetic and memory of small models, and documents as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig

from tests.integration.processes import environment, run, succeed, torchrun
from tests.lm.tiny_run import DATA, MODEL, TRAINING
from tests.peak_memory import PEAK_KIB
from tokvid.cluster import GPUS, Cluster, state_bytes
from tokvid.config import from_mapping
from tokvid.data.clips import open_clips
from tokvid.errors import ConfigError, ModelError
from tokvid.hub import shipped_models
from tokvid.recipe import load_recipe, shipped_recipes
from tokvid_lm.building import build_lm
from tokvid_lm.code_clips import code_clips
from tokvid_lm.collate import collate
from tokvid_lm.documents import Documents
from tokvid_lm.lora import LoRAConfig
from tokvid_lm.objectives.video_objective import VideoObjective
from tokvid_lm.plan import plan_lm
from tokvid_lm.step_cost import EmptyModel
from tokvid_lm.text_tokenizer import train_text_tokenizer
from tokvid_lm.training_config import LMRecipe
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.quantizers import build_quantizer
from tokvid_tokenizers.training_config import CodecRecipe

MIXTURE = [
    {"objective": "next_token", "share": 2},
    {"objective": "maskgit", "task": "inpainting"},
    {"objective": "frame"},
    {"objective": "caption"},
]
LLAMA = LlamaConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


def recipe(**changes: Any) -> LMRecipe:
    training = {**TRAINING, "mixture": MIXTURE, **changes.pop("training", {})}
    data = {"task": "lm", "output": "nowhere", "codec": "preset:tiny", "data": DATA, "model": MODEL}
    return from_mapping(LMRecipe, {**data, **changes, "training": training, "evaluation": {"clips": 5}})


def test_parameters_documents_and_arithmetic_are_those_of_the_run(codec: VideoCodec) -> None:
    run = recipe()
    clips = code_clips(codec, open_clips(run.data, "train"))
    lm = build_lm(run, codec, clips.captions)
    documents = Documents(lm.processor, clips, mixture=run.training.mixture, prompt_drop=run.training.prompt_drop)
    written = [documents.document(sample) for sample in range(400)]
    caption = round(float(np.mean([len(documents.caption(number)) for number in range(len(clips))])))
    plan = plan_lm(run, codec, Cluster(), caption_ids=caption)

    assert plan["clip"]["codes"] == clips.grid_of(0).cells * codec.num_codebooks
    assert plan["model"]["ids"] == pytest.approx(lm.vocabulary.total_size, rel=0.1)
    assert plan["model"]["parameters"] == pytest.approx(sum(p.numel() for p in lm.model.parameters()), rel=0.1)
    assert plan["document"]["ids"] == pytest.approx(np.mean([len(document) for document in written]), rel=0.05)
    assert plan["run"]["documents"] == run.training.steps * run.training.batch_size

    # Every row is as long as the longest document, captions apart.
    width = plan["document"]["longest"]
    rows = [[document] for document in written if len(document) <= width][:200]
    batch = collate(rows, pad_id=lm.pad_id, positions=lm.positions, width=width)
    objective = VideoObjective(lm.model.train(), lm.vocabulary)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(**batch)["loss"].backward()
    counted = counter.get_total_flops() / len(rows) * run.training.batch_size
    assert plan["step"]["flops"] == pytest.approx(counted, rel=0.1)


def test_arithmetic_and_memory_of_an_empty_model_are_those_of_a_real_one() -> None:
    empty = EmptyModel(LLAMA, dtype=torch.float32)
    real = LlamaForCausalLM(LLAMA)
    rows, length, width, layers = 2, 96, LLAMA.hidden_size, LLAMA.num_hidden_layers
    assert empty.parameters == empty.trained == sum(parameter.numel() for parameter in real.parameters())
    tables = 2 * LLAMA.vocab_size * width
    norms = (2 * layers + 1) * width
    matrices = empty.parameters - tables - norms
    cost = empty.cost(rows, length, masked=False, autocast=False)
    # Of attention two products forward and four backward.
    assert cost.flops == 6 * matrices * rows * length + (2 + 4) * 2 * layers * rows * length**2 * width

    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in real.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = real.model(input_ids=ids, use_cache=False).last_hidden_state
    assert cost.kept == pytest.approx(sum(kept.values()), rel=0.05)
    del hidden

    again = empty.cost(rows, length, masked=False, autocast=False, recomputed=True)
    assert again.flops == pytest.approx(cost.flops * 4 / 3, rel=0.1) and again.kept + again.again < cost.kept / 2
    assert empty.cost(rows, length, masked=True, autocast=False).kept >= cost.kept
    assert empty.cost(rows, length, masked=False, autocast=True).kept < cost.kept


def test_adapters_learn_few_parameters_and_spare_the_gradients_of_the_others() -> None:
    pytest.importorskip("peft")
    whole = EmptyModel(LLAMA, dtype=torch.float32)
    adapted = EmptyModel(LLAMA, dtype=torch.float32, lora=LoRAConfig(rank=2), first_new_row=400)
    assert adapted.trained < whole.trained / 3 and adapted.parameters > whole.parameters
    full = whole.cost(1, 64, masked=False, autocast=False)
    assert adapted.cost(1, 64, masked=False, autocast=False).flops < 0.85 * full.flops


def test_a_model_that_looks_at_numbers_is_refused() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = MixtralConfig(vocab_size=50, num_key_value_heads=2, **shape)
    try:
        EmptyModel(experts, dtype=torch.float32).cost(1, 16, masked=False, autocast=False)
    except ModelError as error:
        assert "a model of the kind mixtral cannot be counted without its weights" in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "h1oo"}, "unknown GPU 'h1oo': known: a100, b200, h100,"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"utilisation": 0.0}, "utilisation must be positive"),
        ({"utilisation": 1.5}, "at most 1, got 1.5"),
        ({"price": -1.0}, "price must be at least 0"),
    ],
)
def test_clusters_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(Cluster(), **change)


def test_gpus_share_the_work_and_zero_the_memory(codec: VideoCodec) -> None:
    bf16 = recipe(training={"precision": "bf16"})
    one, many = (plan_lm(bf16, codec, Cluster(count=count, price=2.0)) for count in (1, 8))
    assert many["step"]["ids"] == 8 * one["step"]["ids"]
    assert many["run"]["hours"] == pytest.approx(one["run"]["hours"])  # eight times the batch, in the same steps
    assert many["run"]["cost"] == pytest.approx(8 * one["run"]["cost"])
    totals = [row["total"] - row["between_passes"] for row in many["memory"][1:]]
    assert totals == sorted(totals, reverse=True) and totals[3] == pytest.approx(totals[0] / 8, rel=0.01)
    alone = [row["total"] for row in one["memory"][1:4]]
    assert len(set(alone)) == 1
    hours = one["run"]["flops"] / (GPUS["h100"].peak * 0.4) / 3600
    assert one["run"]["hours"] == pytest.approx(hours)


def test_a_recipe_in_float32_is_planned_in_float32(codec: VideoCodec) -> None:
    half, full = (plan_lm(recipe(training={"precision": kind}), codec, Cluster(count=2)) for kind in ("auto", "fp32"))
    assert (half["precision"], full["precision"]) == ("bf16", "fp32")
    assert half["step"] == full["step"]
    for stage, (was, now) in enumerate(zip(half["memory"][1:], full["memory"][1:], strict=True)):
        assert now["weights"] == 2 * was["weights"] and now["gradients"] == 2 * was["gradients"], stage
        # The optimizer of bfloat16 weights has float32 ones, that of float32 weights from stage 1 on a copy.
        assert now["optimizer"] <= was["optimizer"]
    assert all(
        now["between_passes"] > was["between_passes"] for was, now in zip(half["memory"], full["memory"], strict=True)
    )


@pytest.mark.parametrize("layers", [2, 4])
def test_the_keys_and_values_of_a_clip_are_what_a_cache_holds(layers: int, codec: VideoCodec) -> None:
    run = recipe(model={**MODEL, "num_layers": layers}, training={"mixture": [{"objective": "next_token"}]})
    plan = plan_lm(run, codec, Cluster(), caption_ids=7)
    lm = build_lm(run, codec, code_clips(codec, open_clips(run.data, "train")).captions)
    cache = DynamicCache()
    ids = torch.zeros(1, 7 + plan["clip"]["ids"], dtype=torch.int64)
    with torch.no_grad():
        lm.model.to(torch.bfloat16)(input_ids=ids, past_key_values=cache, use_cache=True)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert plan["kv_cache_bytes_a_clip"] == held


LARGER = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
MEASURE = f"""
import json, sys
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
torch.set_num_threads(1)
def peak(): return {PEAK_KIB}
def step(model, ids):
    model.model(input_ids=ids, use_cache=False).last_hidden_state.square().mean().backward()
config = LlamaConfig(**json.loads(sys.argv[1]))
small = LlamaForCausalLM(LlamaConfig(vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2))
step(small, torch.zeros(1, 8, dtype=torch.int64))  # what torch itself takes at first
before = peak()
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
for _ in range(2):
    step(model, torch.zeros(4, 512, dtype=torch.int64))
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process held")
def test_the_memory_of_a_step_is_what_a_process_takes() -> None:
    variables = {**environment(), "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, json.dumps(LARGER)]
    peak = succeed(subprocess.run(command, capture_output=True, text=True, env=variables))
    empty = EmptyModel(LlamaConfig(**LARGER), dtype=torch.float32)
    cost = empty.cost(4, 512, masked=False, autocast=False)
    planned = state_bytes(empty.parameters, empty.trained, stage=None, gpus=1).total + cost.kept
    assert planned == pytest.approx(int(peak) * 1024, rel=0.1)


ZERO = """
import gc, sys
import torch
from tokvid.deepspeed_config import import_deepspeed
deepspeed = import_deepspeed()
stage = int(sys.argv[1])
deepspeed.init_distributed("gloo")
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)])
count = sum(parameter.numel() for parameter in model.parameters())
small = {"reduce_bucket_size": 1000}
if stage == 3:
    small |= {"stage3_prefetch_bucket_size": 1000, "stage3_param_persistence_threshold": 100}
passes = int(sys.argv[3])
batches = {"gradient_accumulation_steps": passes, "train_micro_batch_size_per_gpu": 4}
settings = {**batches, "gradient_clipping": 1.0, "bf16": {"enabled": sys.argv[2] == "bf16"}}
dtype = torch.bfloat16 if sys.argv[2] == "bf16" else torch.float32
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters()),
    config={**settings, "zero_optimization": {"stage": stage, **small}},
)
def held():
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
most = 0
def look(_):
    global most
    most = max(most, held())
for parameter in model.parameters():
    parameter.register_post_accumulate_grad_hook(look)
for number in range(2 * passes):
    most = 0 if number < passes else most
    engine.backward(engine(torch.randn(4, 512, dtype=dtype)).float().square().mean())
    look(None)
    engine.step()
if torch.distributed.get_rank() == 0:
    print("held", most / count)
deepspeed.comm.destroy_process_group()  # else a process that ends before the other may be aborted by its own threads
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")
@pytest.mark.parametrize(("stage", "passes"), [(0, 1), (1, 1), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_memory_of_each_zero_stage_is_what_deepspeed_holds(
    stage: int, passes: int, precision: str, tmp_path: Path
) -> None:
    program = tmp_path / "zero.py"
    program.write_text(ZERO, encoding="utf-8")
    printed = succeed(run(*torchrun(2), program, stage, precision, passes, cwd=tmp_path))
    (line,) = [line for line in printed.splitlines() if line.startswith("held")]
    million, bf16 = 1_000_000, precision == "bf16"
    expected = state_bytes(million, million, stage=stage, gpus=2, bf16=bf16, accumulates=passes > 1).total / million
    live = (2 if bf16 else 4) if stage == 3 else 0  # so small a model is put together whole
    assert float(line.split()[1]) == pytest.approx(expected + live, rel=0.05)


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tokvid.cli.main import main

    small = ["lm/sprites-tiny", "--codec=preset:tiny", "--gpus", "8", "--price", "2"]
    assert main(["plan", *small]) == 0
    printed = capsys.readouterr().out
    assert "8 x h100 (989 TFLOP/s" in printed and "ZeRO 3, bfloat16" in printed and "cost" in printed
    assert main(["plan", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["steps"] > 0
    assert main(["plan", "lm/sprites-hybrid"]) == 2
    assert "is of the task 'head'; what is planned are the tasks codec, lm" in capsys.readouterr().err
    assert main(["plan", *small, "--caption-ids", "-1"]) == 2


SHIPPED_CODEC = "runs/sprites-vq/codec/codec"
"""Where the recipe of the codec that comes with tokvid puts it."""


def recipes_of(task: str) -> dict[str, dict[str, Any]]:
    found = {name: load_recipe(name) for name in shipped_recipes()}
    return {name: data for name, data in found.items() if data["task"] == task}


def test_a_model_of_latents_is_not_planned_yet(capsys: pytest.CaptureFixture[str]) -> None:
    from tokvid.cli.main import main

    assert main(["plan", "lm/sprites-continuous-tiny", "--codec=codec/sprites-kl"]) == 2
    assert "draws latents with a head is not planned yet" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, data in recipes_of("lm").items() if "head" not in data])
def test_every_recipe_is_planned_before_there_is_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the recipe of its codec (one that comes with tokvid is there), and of a pretrained model its configuration,
    here of a small one."""
    from tokvid.cli.main import main

    monkeypatch.chdir(tmp_path)
    data = load_recipe(name)
    is_shipped = data["codec"] in shipped_models()
    wanted = SHIPPED_CODEC if is_shipped else data["codec"]
    (codec,) = (kind for kind, made in recipes_of("codec").items() if f"{made['output']}/codec" == wanted)
    pretrained = data["model"]["kind"] == "pretrained"
    if pretrained:
        if data["model"].get("lora"):
            pytest.importorskip("peft")
        LlamaConfig(**{**LLAMA.to_dict(), "max_position_embeddings": 40_000}).save_pretrained("small")
        train_text_tokenizer(["a fox moves left"], 300).save_pretrained("small")
    changes = [*([] if is_shipped else [f"--codec={codec}"]), *(["--model.name=small"] if pretrained else [])]
    assert main(["plan", name, *changes, "--gpus", "64", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["run"]["steps"] == data["training"]["steps"] and plan["run"]["hours"] > 0
    assert plan["clip"]["codes"] == codes_of_a_clip(codec)


def codes_of_a_clip(name: str) -> int:
    """Codes of a clip of a codec's recipe, whose settings say it."""
    made = from_mapping(CodecRecipe, load_recipe(name))
    cells = made.codec.grid_for(made.data.num_frames, *made.data.size).cells
    return cells * build_quantizer(made.codec.quantizer).num_codebooks
