"""What only a CUDA device can show; all of it is skipped without one.

Whole runs are compared loosely: sums of floats in another order tip choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lm.masks import mixed
from tests.lm.test_mask_spec import logits_of, random_ids
from tests.lm.test_samplers import build, draw
from tests.lm.tiny import build_model
from tests.lm.tiny_run import recipe, train
from tokvid.runtime import prepare
from tokvid_lm import VideoLM
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.vocabulary import MODES
from tokvid_tokenizers import VideoCodec, load_codec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLEX_HEAD = 16  # of features; on a GPU flex attention takes no smaller head


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


def on_gpu(spec: MaskSpec) -> MaskSpec:
    tensors = {
        field.name: value.cuda() for field in fields(spec) if isinstance(value := getattr(spec, field.name), Tensor)
    }
    return replace(spec, **tensors)


@pytest.mark.parametrize("kind", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_attention_sees_the_same_there(family: str, kind: str) -> None:
    spec = mixed()
    ids = random_ids(spec)
    model = build_model(family, head_dim=FLEX_HEAD)
    expected = logits_of(model, "sdpa", ids, spec, spec.order)
    found = logits_of(model.cuda(), kind, ids.cuda(), on_gpu(spec), spec.order.cuda()).cpu()
    for mine, its, document in zip(found, expected, spec.document, strict=True):
        torch.testing.assert_close(mine[document >= 0], its[document >= 0], rtol=1e-3, atol=1e-4)


def test_flex_attention_has_the_gradients_of_sdpa() -> None:
    spec = on_gpu(mixed())
    ids, gradients = random_ids(mixed()).cuda(), []
    for kind in ("sdpa", "flex_attention"):
        model = build_model("llama", head_dim=FLEX_HEAD).cuda()
        model.set_attn_implementation(kind)
        logits = model(input_ids=ids, use_cache=False, **mask_for(model, spec, spec.order)).logits
        logits[spec.document >= 0].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_drawn_there_are_the_clips_that_are_drawn_here(mode: str) -> None:
    """The noise is the same to the last bit, and so, in fp32, are the codes but for choices that sums have tipped."""
    here = build()
    there = deepcopy(here).to("cuda")
    expected, found = draw(here, mode), draw(there, mode).cpu()
    assert torch.equal(found, draw(there, mode, use_cache=False).cpu())
    assert float((found == expected).float().mean()) > 0.9
    halves = deepcopy(here)
    halves.model.to("cuda", torch.bfloat16)
    ids = draw(halves, mode)
    assert bool(((ids >= here.vocabulary.code_offset) & (ids < here.vocabulary.total_size)).all())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_there_learns_what_it_learns_here(precision: str, codec: VideoCodec, tmp_path: Path) -> None:
    mixture = [{"objective": mode} for mode in MODES] + [{"objective": "caption"}]
    there = train(
        recipe(tmp_path / "there", precision=precision, mixture=mixture, loading_workers=2), deepcopy(codec).cuda()
    )
    assert next(there.lm.model.parameters()).device.type == "cuda"
    found = VideoLM.from_pretrained(there.folder)
    assert found.settings == there.lm.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        here = train(recipe(tmp_path / "here", precision="fp32", mixture=mixture), codec)
    tolerance = {"fp32": 0.01, "bf16": 0.1}[precision]
    for name, nats in here.losses.validation.items():
        assert there.losses.validation[name] == pytest.approx(nats, rel=tolerance), name


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_a_codec_streams_there_as_it_does_on_whole_clips(name: str) -> None:
    prepare(0)
    codec = load_codec(f"preset:{name}").cuda()
    frames = torch.rand(1, 3, 38, 32, 32, device="cuda") * 2 - 1
    codes = codec.encode(frames)
    with codec.stream_encoder() as encoder:
        parts = [encoder.push(piece) for piece in frames.split(7, dim=2)]
        assert torch.equal(torch.cat([*parts, encoder.finish()], dim=2), codes)
    with codec.stream_decoder() as decoder:
        shown = [decoder.push(piece) for piece in codes.split(3, dim=2)]
        whole = codec.decode(codes)
        torch.testing.assert_close(torch.cat([*shown, decoder.finish()], dim=2), whole, rtol=0, atol=1e-5)
