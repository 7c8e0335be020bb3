"""The whole object: prompts in, clips or text out, saved and loaded."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.errors import CheckpointError, ModelError
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import VideoCodec, load_codec

SIZE: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 24}
CAT, DOG = [TextSegment("a cat")], [TextSegment("a dog that runs far away")]


def _codes(clips: list[VideoSegment] | list[TextSegment]) -> torch.Tensor:
    rows = [clip.codes for clip in clips if isinstance(clip, VideoSegment) and clip.codes is not None]
    assert len(rows) == len(clips)
    return torch.cat(rows)


def test_clips_of_the_size_that_was_asked(video_lm: VideoLM) -> None:
    clips = video_lm.generate([CAT, DOG], **SIZE, guidance_scale=2.0, num_return_sequences=2)
    assert len(clips) == 4
    for clip, caption in zip(clips, ["a cat"] * 2 + ["a dog that runs far away"] * 2, strict=True):
        assert isinstance(clip, VideoSegment)
        assert clip.codes is not None
        assert clip.frames is not None
        assert clip.codes.shape == (1, 1, 2, 2, 3)
        assert clip.frames.shape == (1, 3, 5, 16, 24)
        assert clip.caption == caption
        with torch.no_grad():
            assert torch.allclose(clip.frames, video_lm.codec.decode(clip.codes, num_frames=5), atol=1e-5)
    assert len(torch.unique(_codes(clips), dim=0)) == 4


def test_one_prompt_is_a_batch_of_one_and_batches_do_not_matter(video_lm: VideoLM) -> None:
    assert torch.equal(_codes(video_lm.generate(CAT, **SIZE)), _codes(video_lm.generate([CAT], **SIZE)))
    together = _codes(video_lm.generate([CAT, DOG, CAT], **SIZE, guidance_scale=3.0))
    apart = _codes(video_lm.generate([CAT, DOG, CAT], **SIZE, guidance_scale=3.0, batch_size=2))
    assert torch.equal(together, apart)
    assert not torch.equal(together, _codes(video_lm.generate([CAT, DOG, CAT], **SIZE, guidance_scale=3.0, seed=1)))


def test_the_prompt_may_hold_video_and_the_answer_may_be_text(video_lm: VideoLM) -> None:
    clip = video_lm.generate(CAT, **SIZE)[0]
    (text,) = video_lm.generate([TextSegment("what is this?"), clip], output="text", max_new_tokens=7)
    assert isinstance(text, TextSegment)
    again = video_lm.generate([clip, TextSegment("backwards")], **SIZE)
    assert _codes(again).shape == (1, 1, 2, 2, 3)


def test_greedy_text_is_what_hugging_face_writes(video_lm: VideoLM) -> None:
    (answer,) = video_lm.generate(CAT, output="text", max_new_tokens=12, top_k=1)
    with pytest.raises(ModelError, match="mode, height, compiled cannot be used to generate text: leave them out"):
        video_lm.generate(CAT, output="text", mode="maskgit", height=33, compiled=True)
    with pytest.raises(ModelError, match="guidance_scale is for video"):
        video_lm.generate(CAT, output="text", guidance_scale=2.0)
    with pytest.raises(ModelError, match="fps cannot be used to generate text: leave it out"):
        video_lm.generate(CAT, output="text", fps=3.0)
    assert isinstance(answer, TextSegment)
    prompt = video_lm.processor.encode_prompt(CAT)[None]
    text_only = list(range(video_lm.vocabulary.text_size, video_lm.vocabulary.total_size))
    ids = video_lm.model.generate(prompt, do_sample=False, max_new_tokens=12, suppress_tokens=text_only)
    expected = video_lm.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
    assert answer.text == expected


def test_saved_and_loaded_it_says_the_same(video_lm: VideoLM, tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    video_lm.save_pretrained(folder)
    video_lm.save_pretrained(folder)  # over its own kind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm"]
    again = VideoLM.from_pretrained(folder)
    wanted = _codes(video_lm.generate(CAT, **SIZE, guidance_scale=2.0))
    assert torch.equal(_codes(again.generate(CAT, **SIZE, guidance_scale=2.0)), wanted)
    assert next(VideoLM.from_pretrained(folder, dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_it_draws_as_it_was_evaluated_unless_told_otherwise(video_lm: VideoLM, tmp_path: Path) -> None:
    chosen = {"guidance_scale": 2.0, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    plain = _codes(video_lm.generate(CAT, **SIZE))
    wanted = _codes(video_lm.generate(CAT, **SIZE, **chosen))
    assert not torch.equal(plain, wanted)
    video_lm.save_pretrained(tmp_path / "lm")
    lm = VideoLM.from_pretrained(tmp_path / "lm")
    assert lm.settings == VideoSettings()
    lm.settings = VideoSettings(sampling=(Sampling(**chosen), Sampling(mode="frame", steps=3)), fps=8.0)
    lm.save_pretrained(tmp_path / "lm")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    assert again.settings == lm.settings
    assert again.sampling_for(None) == Sampling(**chosen) and again.sampling_for("frame").steps == 3
    again.settings = VideoSettings(sampling=lm.settings.sampling)
    assert torch.equal(_codes(again.generate(CAT, **SIZE)), wanted)
    # Every setting can be overruled, also by its being off.
    off = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert torch.equal(_codes(again.generate(CAT, **SIZE, **off)), plain)
    # Text knows nothing of how clips are best drawn.
    text = {"output": "text", "max_new_tokens": 5}
    assert again.generate(CAT, **text) == video_lm.generate(CAT, **text)


def test_a_folder_with_saved_settings_loads_plain_and_without_a_warning(video_lm: VideoLM, tmp_path: Path) -> None:
    video_lm.save_pretrained(tmp_path / "lm")
    lm = VideoLM.from_pretrained(tmp_path / "lm")
    lm.settings = VideoSettings(sampling=(Sampling(guidance_scale=2.0, top_k=5),))
    lm.save_pretrained(tmp_path / "lm")
    program = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "lm")!r})
ids = AutoTokenizer.from_pretrained({str(tmp_path / "lm")!r})("a cat", return_tensors="pt")
model.generate(**ids, max_new_tokens=2, do_sample=False)
assert model.generation_config.guidance_scale in (None, 1.0), "text would be guided"
"""
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_large_model_in_several_files_loads_and_is_replaced(video_lm: VideoLM, tmp_path: Path) -> None:
    video_lm.save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").unlink()
    video_lm.model.save_pretrained(tmp_path / "lm", max_shard_size="20KB")  # what transformers does beyond 50 GB
    assert len(list((tmp_path / "lm").glob("model-*.safetensors"))) > 1
    ours, theirs = VideoLM.from_pretrained(tmp_path / "lm").model.state_dict(), video_lm.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    video_lm.save_pretrained(tmp_path / "lm")
    assert [path.name for path in (tmp_path / "lm").glob("*.safetensors*")] == ["model.safetensors"]


def test_files_beside_a_model_are_not_deleted(video_lm: VideoLM, tmp_path: Path) -> None:
    video_lm.save_pretrained(tmp_path / "lm")
    video_lm.save_pretrained(tmp_path / "lm")  # an earlier model alone is replaced
    (tmp_path / "lm" / "model-00001-of-00002.safetensors").touch()  # as are the weights of a larger one
    video_lm.save_pretrained(tmp_path / "lm")
    assert not list((tmp_path / "lm").glob("model-*"))
    (tmp_path / "lm" / "README.md").write_text("my card")
    with pytest.raises(CheckpointError, match=r"holds more than a VideoLM \(README\.md\)"):
        video_lm.save_pretrained(tmp_path / "lm")
    assert (tmp_path / "lm" / "README.md").read_text() == "my card"
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_folders_that_are_not_ours_are_left_alone(video_lm: VideoLM, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no VideoLM; choose another"):
        video_lm.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_broken_folders_say_what_is_wrong(video_lm: VideoLM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"video_lm.json is missing"):
        VideoLM.from_pretrained(tmp_path)
    folder = tmp_path / "lm"
    video_lm.save_pretrained(folder)
    path = folder / "video_lm.json"
    facts = json.loads(path.read_text())
    for change, message in (
        ({"format_version": 1}, "format_version 1, this tokvid reads 2"),
        ({"layout": "spiral"}, "unknown layout 'spiral'"),
        ({"template": "fancy"}, "unknown template 'fancy'"),
        ({"positions": "4d"}, "was not saved with positions '4d'"),
        ({"positions": 3}, "names no positions but 3"),
        ({"settings": {"sampling": [{"temprature": 1.0}]}}, r"sampling\[0\].temprature': did you mean 'temperature'"),
        ({"settings": {"sampling": [{"top_k": -1}]}}, r"sampling\[0\]: top_k must be at least 1, got -1"),
        ({"settings": {"sampling": [{}, {}]}}, "draws in each mode it knows once"),
        ({"settings": {"about": "two\nlines"}}, "about is a line of text"),
        ({"vocabulary": facts["vocabulary"] | {"special": {"<|video|>": None}}}, r"special.<\|video\|>': expected int"),
    ):
        path.write_text(json.dumps(facts | change))
        with pytest.raises((CheckpointError, ModelError), match=message):
            VideoLM.from_pretrained(folder)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        VideoLM.from_pretrained(folder)
    path.write_text(json.dumps(facts))
    load_codec("preset:tiny", seed=9).save_pretrained(folder / "codec")
    with pytest.raises(CheckpointError, match="but the model speaks tokvid-"):
        VideoLM.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds its weights in pytorch_model\.bin, and reading that would run"):
        VideoLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "maskgit"}, "not trained to draw in the mode 'maskgit', only in next_token"),
        ({"mode": "maskgti"}, "unknown mode 'maskgti': did you mean 'maskgit'"),
        ({"steps": 3}, "for the masked modes, maskgit and frame"),
        ({"output": "vidoe"}, "unknown output 'vidoe': did you mean 'video'"),
        ({"height": 17}, "multiples of 8"),
        ({"width": None}, "needs num_frames, height and width"),
        ({"num_return_sequences": 0}, "at least 1"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"height": 128, "width": 128}, "the model's context has 256"),
        ({"output": "text"}, "num_frames, height, width cannot be used to generate text: leave them out"),
        ({"prompts": "a cat"}, r"write \[TextSegment"),
        ({"prompts": []}, "list of segments"),
        ({"prompts": [[TextSegment("a")], TextSegment("b")]}, "mixes lists and TextSegment"),
        ({"prompts": [TextSegment("long " * 60)]}, "shorten the prompt"),
    ],
)
def test_what_it_cannot_do_raises(video_lm: VideoLM, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompts": CAT, **SIZE} | change
    with pytest.raises(ModelError, match=message):
        video_lm.generate(**arguments)


def test_parts_that_do_not_fit_together_raise(video_lm: VideoLM, codec: VideoCodec) -> None:
    with pytest.raises(ModelError, match="extend the model"):
        VideoLM(build_model("llama"), video_lm.tokenizer, video_lm.vocabulary, codec)
    with pytest.raises(ModelError, match=r"has id None for <\|video\|>"):
        VideoLM(video_lm.model, build_tokenizer(), video_lm.vocabulary, codec)
    crowded = copy.deepcopy(video_lm.tokenizer)
    crowded.add_tokens(["more"])
    with pytest.raises(ModelError, match=r"'more' has id \d+, which is the id of a code"):
        VideoLM(video_lm.model, crowded, video_lm.vocabulary, codec)
    with pytest.raises(ModelError, match="the codec 1 of 4096"):
        VideoLM(video_lm.model, video_lm.tokenizer, video_lm.vocabulary, load_codec("preset:small"))


def test_importing_the_package_costs_no_torch() -> None:
    import tokvid_lm

    code = "import sys, tokvid_lm; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    lm = Path(tokvid_lm.__file__).parents[1]
    path = os.pathsep.join([str(lm), str(lm.parent), str(lm.parent / "tokenizers")])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("positions", ["3d", "mm"])
def test_other_positions_are_saved_under_another_model_type_and_load_plain_no_more(
    positions: Any, codec: VideoCodec, tmp_path: Path
) -> None:
    lm = VideoLM.extend(build_model("qwen3"), codec=codec, tokenizer=build_tokenizer(), positions=positions)
    lm.save_pretrained(tmp_path / "lm")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    assert torch.equal(_codes(again.generate(CAT, **SIZE)), _codes(lm.generate(CAT, **SIZE)))
    plain = VideoLM.extend(build_model("qwen3"), codec=codec, tokenizer=build_tokenizer())
    assert not torch.equal(_codes(plain.generate(CAT, **SIZE)), _codes(lm.generate(CAT, **SIZE)))
    with pytest.raises(ValueError, match=f"tokvid_{positions}_qwen3"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "lm")


def test_a_large_codebook_is_written_in_factors_and_drawn_in_every_mode(codec: VideoCodec, tmp_path: Path) -> None:
    lm = VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), factors=(40, 25))
    lm.settings = VideoSettings(sampling=tuple(Sampling(mode=mode, steps=4) for mode in MODES))
    assert lm.vocabulary.total_size - lm.vocabulary.code_offset == 65 and lm.vocabulary.slots == 2
    lm.save_pretrained(tmp_path / "lm")
    again = VideoLM.from_pretrained(tmp_path / "lm")
    for mode in MODES:
        codes = _codes(lm.generate([CAT, DOG], mode=mode, guidance_scale=2.0, **SIZE))
        assert codes.shape == (2, 1, 2, 2, 3) and int(codes.max()) < 1000
        assert torch.equal(_codes(again.generate([CAT, DOG], mode=mode, guidance_scale=2.0, **SIZE)), codes)
    with pytest.raises(ModelError, match="multiply to the codebook's 1000"):
        VideoLM.extend(build_model("llama"), codec=codec, tokenizer=build_tokenizer(), factors=(40, 24))
