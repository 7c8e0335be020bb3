"""Drawing in every mode: the cache changes nothing, noise belongs to a sample, not to its batch, given cells stay."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.lm.tiny import FAMILIES, build_model, build_tokenizer
from tokvid.errors import ModelError, ShapeError
from tokvid.grid import Grid
from tokvid.guidance import guide
from tokvid_lm import TextSegment, VideoLM, VideoSegment
from tokvid_lm.collate import collate
from tokvid_lm.document import DocumentWriter
from tokvid_lm.generation import split_request, stream_ids
from tokvid_lm.mask_spec import MaskSpec, mask_for
from tokvid_lm.samplers import masked
from tokvid_lm.samplers.cache import ReservedCache
from tokvid_lm.samplers.next_token import sample_text
from tokvid_lm.samplers.runner import Runner, Way, check_context, sampling_from
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment
from tokvid_lm.tasks import first_frames, inside_box
from tokvid_lm.templates import VideoHeader
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES, Mode
from tokvid_tokenizers import load_codec

GRID = Grid(t=2, h=2, w=3)
TEXTS = ["abcde", "i", "ggg"]


@functools.cache
def build(family: str = "llama", template: str = "rows", num_actions: int = 0) -> VideoLM:
    codec = load_codec("preset:tiny")
    lm = VideoLM.extend(
        build_model(family), codec=codec, tokenizer=build_tokenizer(), template=template, num_actions=num_actions
    )
    lm.settings = VideoSettings(sampling=tuple(Sampling(mode=mode, steps=4) for mode in MODES))
    return lm


def draw(lm: VideoLM, mode: str, prompts: list[list[Segment]] | None = None, **changes: Any) -> Tensor:
    """The ids of codes ``[rows,S]`` of the last state."""
    prompts = [[TextSegment(text)] for text in TEXTS] if prompts is None else prompts
    samples = changes.pop("samples", torch.arange(len(prompts)))
    way = Way(**{name: changes.pop(name) for name in ("use_cache", "compiled") if name in changes})
    sampling = Sampling(**{"mode": mode, "steps": 4, "guidance_scale": 2.0, **changes})  # type: ignore[arg-type]
    requests = [split_request(segments, lm) for segments in prompts]
    states = list(stream_ids(lm, requests, sampling, GRID, 5, fps=None, samples=samples, way=way))
    return states[-1][1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_is_recomputed(family: str, mode: str) -> None:
    """Also beyond Mistral's window of 16, and with prompts of several lengths."""
    lm = build(family)
    assert torch.equal(draw(lm, mode), draw(lm, mode, use_cache=False))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_features_are_the_recomputed_ones(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    plain = Runner.logits

    def spy(runner: Runner, features: Tensor, low: int, high: int) -> Tensor:
        logits = plain(runner, features, low, high)
        seen[runner._cache is not None].append(logits)
        return logits

    monkeypatch.setattr(Runner, "logits", spy)
    lm = build(family)
    draw(lm, mode), draw(lm, mode, use_cache=False)
    assert len(seen[True]) == len(seen[False]) >= 8
    for ours, theirs in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_one_shape_draw_the_same(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiled step is given: whole buffers, and a mask for what is not in them yet. Also beyond a window."""
    shapes = set()

    def only_watched(body: torch.nn.Module, *, dynamic: bool) -> Any:
        def step(**arguments: Any) -> Any:
            mask = arguments["attention_mask"]
            masks = mask.values() if isinstance(mask, dict) else [mask]
            shapes.update((arguments["input_ids"].shape, each.shape) for each in masks)
            return body(**arguments)

        return step

    monkeypatch.setattr(torch, "compile", only_watched)
    # What is reserved and not yet written is NaN then.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        lm = build(family)
        assert torch.equal(draw(lm, mode, compiled=True), draw(lm, mode))
        for length in (1, 7, 19):  # a program would be made for each shape, and torch makes eight at most
            prompt: list[list[Segment]] = [[TextSegment("a" * length)]] * 3
            assert torch.equal(draw(lm, mode, prompt, compiled=True), draw(lm, mode, prompt))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert len(shapes) == 1


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_what_a_fixed_step_tried_is_forgotten(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda body, dynamic: body)
    lm = build(family)
    prompts = [lm.document([TextSegment(text)]) for text in TEXTS]
    ids = torch.arange(24).view(3, 8) + lm.vocabulary.code_offset
    features = []
    for way in (Way(compiled=True), Way(use_cache=False)):
        with sampling_from(lm.model, None):
            runner = Runner(lm.model, lm.head, prompts, 16, positions=lm.positions, way=way)
            runner.prefill()
            places = runner.lengths[:, None] + torch.arange(8)
            for kept in (False, True):
                runner.feed(ids if kept else ids + 30, places, block=True, keep=kept)
            # In pieces that are not compiled, also where something was tried before.
            runner.feed(ids + 60, places + 8, keep=False)
            features.append(runner.feed(ids, places + 8))
    torch.testing.assert_close(*features, atol=1e-5 * float(features[1].abs().max()), rtol=0)


def test_compiled_steps_read_a_cache() -> None:
    with pytest.raises(ModelError, match="a compiled step reads a cache"):
        Way(compiled=True, use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled_steps_draw_the_same_and_compile_once(mode: str) -> None:
    lm, prompt = build(), [TextSegment("abcde")]
    options: dict[str, Any] = {"mode": mode, "num_frames": 5, "height": 16, "width": 24, "temperature": 0.5}
    (plain,) = lm.generate(prompt, **options)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        (found,) = lm.generate(prompt, **options, compiled=True)
        assert isinstance(plain, VideoSegment) and isinstance(found, VideoSegment)
        assert plain.codes is not None and found.codes is not None
        assert torch.equal(found.codes, plain.codes)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2  # that of check_compiles, and the step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_is_drawn_from_under_the_mask_that_it_learns_under(family: str, mode: Mode) -> None:
    """Also beyond Mistral's window of 16, which counts a block from its first place."""
    lm, grid = build(family), Grid(t=2, h=4, w=4)
    codes = torch.randint(1000, (1, 1, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    header = VideoHeader(grid=grid, mode=mode)
    text = lm.processor.start_ids() + lm.processor.encode_text("abcde")
    whole, prompt = (DocumentWriter(lm.template, lm.layout) for _ in range(2))
    for writer in (whole, prompt):
        writer.text(text, scored=False)
    whole.video(lm.processor.code_ids(codes)[0].numpy(), header, asked=np.zeros(grid.cells, bool))
    prompt.header(header)
    document, begin = whole.finish(), prompt.finish()
    batch = collate([[document]], pad_id=0, positions=lm.positions)
    spec = MaskSpec(**{name: batch[name] for name in ("document", "order", "block", "ghost")})
    with torch.no_grad():
        masks = mask_for(lm.model, spec, batch["position_ids"])
        learned = lm.model(input_ids=batch["input_ids"], use_cache=False, **masks).logits[0, len(begin) : -1]
    body, places = (torch.from_numpy(part[len(begin) : -1])[None] for part in (document.ids, document.index))
    first = int((lm.template.body(header).frame == 0).sum())
    parts = [slice(0, first), slice(first, None)] if mode == "frame" else [slice(None)]
    with sampling_from(lm.model, None):
        runner = Runner(lm.model, lm.head, [begin], body.shape[1], positions=lm.positions)
        runner.prefill()
        features = [runner.feed(body[:, part], places[:, part], block=mode != "next_token") for part in parts]
        drawn = runner.logits(torch.cat(features, dim=1)[0], 0, lm.vocabulary.total_size)
    torch.testing.assert_close(drawn, learned, atol=1e-4 * float(learned.abs().max()), rtol=0)


def test_a_video_that_is_completed_keeps_its_length() -> None:
    lm = build()
    frames = torch.zeros(1, 3, 8, 16, 16)
    clip = VideoSegment(frames=frames, known=first_frames(lm.codec.grid_for(8, 16, 16), 1))
    (whole,) = lm.generate([clip], mode="maskgit")
    assert isinstance(whole, VideoSegment) and whole.frames is not None and whole.frames.shape == frames.shape


def test_few_unknown_codes_are_drawn_alike_beside_many() -> None:
    lm = build()
    codes = torch.zeros(1, 1, *(GRID.t, GRID.h, GRID.w), dtype=torch.int64)
    known = torch.ones(GRID.t, GRID.h, GRID.w, dtype=torch.bool)
    known[1, 0] = False
    few: list[Segment] = [TextSegment("abc"), VideoSegment(codes=codes, known=known)]
    many: list[Segment] = [TextSegment("de"), VideoSegment(codes=codes, known=torch.zeros_like(known))]
    for seed in range(20):
        alone = draw(lm, "maskgit", [few], steps=8, seed=seed)
        assert torch.equal(alone, draw(lm, "maskgit", [few, many], steps=8, seed=seed)[:1])


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_does_not_depend_on_its_batch(mode: str) -> None:
    lm = build()
    together = draw(lm, mode)
    for row, text in enumerate(TEXTS):
        assert torch.equal(together[row : row + 1], draw(lm, mode, [[TextSegment(text)]], samples=torch.tensor([row])))
    twins = draw(lm, mode, [[TextSegment("abcde")]] * 3)
    assert len(torch.unique(twins, dim=0)) == 3
    assert torch.equal(together, draw(lm, mode))
    assert not torch.equal(together, draw(lm, mode, seed=1))


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_hot_samples_are_whole_videos(mode: str) -> None:
    """Every id is a code of its slot; what lies around them is written by the template."""
    lm = build()
    prompts: list[list[Segment]] = [[TextSegment(TEXTS[number % 3])] for number in range(1000)]
    ids = draw(lm, mode, prompts, temperature=2.0, guidance_scale=1.0, steps=2)
    codes = lm.vocabulary.slot_range(0)
    assert ids.shape == (1000, GRID.t * GRID.h * GRID.w)
    assert int(ids.min()) >= codes.start and int(ids.max()) < codes.stop
    assert lm.processor.decode_codes(ids, GRID).shape == (1000, 1, GRID.t, GRID.h, GRID.w)
    assert len(torch.unique(ids)) > 500  # hot indeed


@pytest.mark.parametrize("mode", MODES)
def test_guidance_of_one_is_off_and_zero_is_the_null_prompt(mode: str) -> None:
    lm = build()
    off = draw(lm, mode, guidance_scale=1.0)
    assert not torch.equal(off, draw(lm, mode, guidance_scale=4.0))
    nothing = draw(lm, mode, [[], [], []], guidance_scale=1.0)
    assert torch.equal(nothing, draw(lm, mode, guidance_scale=0.0))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "next_token"])
def test_guidance_rises_with_the_codes_that_are_drawn(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, scales = build(), []

    def noted(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
        scales.append(scale.flatten().unique().tolist())
        return guide(conditional, unconditional, scale)

    monkeypatch.setattr(masked, "guide", noted)
    ramp = draw(lm, mode, guidance_scale=3.0, guidance_ramp=True, steps=3)
    cells = GRID.h * GRID.w * (GRID.t if mode == "maskgit" else 1)
    left = Sampling(mode=mode).schedule.counts(cells, 3)  # type: ignore[arg-type]
    expected = [1 + 2 * (1 - after / cells) for after in left] * (1 if mode == "maskgit" else GRID.t)
    assert [len(each) for each in scales] == [1] * len(expected), "all rows have as many codes"
    assert [each[0] for each in scales] == pytest.approx(expected) and expected[-1] == 3.0
    # Its last step alone is that of level guidance.
    one = draw(lm, mode, guidance_scale=3.0, guidance_ramp=True, steps=1)
    assert torch.equal(one, draw(lm, mode, guidance_scale=3.0, steps=1))
    assert not torch.equal(ramp, draw(lm, mode, guidance_scale=3.0, steps=3))


def given(lm: VideoLM, known: Tensor, text: str = "abcde") -> list[Segment]:
    codes = torch.arange(12).view(1, 1, 2, 2, 3) * 71 % lm.codec.codebook_size
    return [TextSegment(text), VideoSegment(codes=codes, known=known)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "known", [first_frames(GRID, 1), inside_box(GRID, 0, 1, 2, 1), ~inside_box(GRID, 0, 1, 2, 1)], ids=str
)
def test_given_cells_stay_and_the_cache_changes_nothing(mode: str, known: Tensor) -> None:
    lm = build()
    prompts = [given(lm, known), given(lm, first_frames(GRID, 1), "i"), given(lm, known, "ggg")]
    ids = draw(lm, mode, prompts)
    codes = lm.processor.decode_codes(ids, GRID)
    for row, segments in enumerate(prompts):
        video = segments[-1]
        assert isinstance(video, VideoSegment) and video.codes is not None and video.known is not None
        assert torch.equal(codes[row, 0][video.known], video.codes[0, 0][video.known])
    assert torch.equal(ids, draw(lm, mode, prompts, use_cache=False))
    other = [[*segments[:-1], VideoSegment(codes=7 + segments[-1].codes, known=known)] for segments in prompts]  # type: ignore[union-attr]
    unknown = ~known
    changed = lm.processor.decode_codes(draw(lm, mode, other), GRID)[0, 0][unknown]
    assert not torch.equal(changed, codes[0, 0][unknown]), "what is given is seen, wherever it stands"


@pytest.mark.parametrize("mode", MODES)
def test_guidance_may_be_towards_the_given_cells(mode: str) -> None:
    """Fault 8: what is compared with must not know what guidance is towards."""
    lm = build()
    prompts = [given(lm, first_frames(GRID, 1))]
    texts = draw(lm, mode, prompts, guidance_scale=3.0)
    assert not torch.equal(texts, draw(lm, mode, prompts, guidance_scale=3.0, guides_known=True))
    both = draw(lm, mode, prompts, guidance_scale=0.0, guides_known=True)[:, 6:]
    assert torch.equal(both, draw(lm, mode, prompts, guidance_scale=0.0, guides_known=True, use_cache=False)[:, 6:])


def test_frames_come_as_they_are_done() -> None:
    lm = build()
    requests = [split_request([TextSegment("abc")], lm)]
    for mode, frames in (("next_token", [0, 1]), ("frame", [0, 1]), ("maskgit", [1])):
        sampling = Sampling(mode=mode, steps=3)  # type: ignore[arg-type]
        states = [
            (frame, ids.clone())
            for frame, ids in stream_ids(lm, requests, sampling, GRID, 5, fps=None, samples=torch.arange(1))
        ]
        assert [frame for frame, _ in states] == frames
        if len(states) == 2:
            assert torch.equal(states[0][1][:, :6], states[1][1][:, :6]), "a finished frame stays"


@pytest.mark.parametrize("mode", MODES)
def test_a_video_takes_the_passes_it_should(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, calls = build(), []
    plain = Runner._forward
    monkeypatch.setattr(Runner, "_forward", lambda self, *rest: calls.append(rest[0].shape[1]) or plain(self, *rest))
    draw(lm, mode)
    assert len(calls) == {"next_token": 1 + 12, "maskgit": 1 + 4, "frame": 1 + 4 + 1 + 4}[mode]


def test_actions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build(num_actions=3)
    size: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 24}
    for mode in MODES:

        def codes(actions: Tensor, mode: str = mode) -> Tensor:
            (clip,) = lm.generate([TextSegment("a")], mode=mode, actions=actions, **size)
            assert isinstance(clip, VideoSegment) and clip.codes is not None
            return clip.codes

        one, other = codes(torch.tensor([0, 1, 2, 0])), codes(torch.tensor([0, 1, 2, 1]))
        if mode != "maskgit":
            assert torch.equal(one[:, :, 0], other[:, :, 0]), "the first frame comes before all actions"
        assert not torch.equal(one, other)
    with pytest.raises(ModelError, match=r"actions must lie in \[0, 3\), got values from 0 to 5"):
        lm.generate([TextSegment("a")], actions=torch.tensor([0, 1, 2, 5]), **size)
    with pytest.raises(ShapeError, match="has 4 actions, one from each frame to the next, got 3"):
        lm.generate([TextSegment("a")], actions=torch.tensor([0, 1, 2]), **size)
    with pytest.raises(ModelError, match="draws videos from actions: give actions"):
        lm.generate([TextSegment("a")], **size)
    with pytest.raises(ModelError, match="this model knows no actions"):
        build().generate([TextSegment("a")], actions=torch.tensor([0, 1, 2, 0]), **size)


def test_text_rows_end_on_their_own() -> None:
    lm = build()
    ends = list(range(100))
    allowed = torch.ones(lm.vocabulary.text_size, dtype=torch.bool)
    prompts = [lm.document([TextSegment(chr(100 + i))]) for i in range(8)]
    with sampling_from(lm.model, None):
        runner = Runner(lm.model, lm.head, prompts, 30, positions=lm.positions)
        drawn = list(sample_text(runner, allowed, ends, Sampling(), torch.arange(8), max_new_tokens=30))
    ids = torch.stack(drawn, dim=1)
    assert ids.shape[1] < 30
    lengths = set()
    for row in ids.tolist():
        end = next(i for i, token in enumerate(row) if token in ends)
        lengths.add(end)
        assert all(token == ends[0] for token in row[end + 1 :])
    assert len(lengths) > 1


def test_what_cannot_be_sampled_raises() -> None:
    lm = build()
    with pytest.raises(ModelError, match=r"need \d+ positions, but the model's context has 256"):
        check_context(lm.model, 300)
    with pytest.raises(ModelError, match=r"need \d+ positions, but the model's context has 256"):
        draw(lm, "next_token", [[TextSegment("x" * 500)]])
    with pytest.raises(ShapeError, match=r"known must be bool \[2, 2, 3\]"):
        draw(lm, "maskgit", [given(lm, torch.zeros(2, 3, 3, dtype=torch.bool))])
    longer = Grid(t=3, h=2, w=3)
    video = VideoSegment(codes=torch.zeros(1, 1, 3, 2, 3, dtype=torch.int64), known=first_frames(longer, 1))
    with pytest.raises(ShapeError, match="has a grid of"):
        draw(lm, "maskgit", [[video]])
    lm.settings = VideoSettings(sampling=lm.settings.sampling, knows_null_prompt=False)
    try:
        with pytest.raises(ModelError, match="trained without prompt_drop"):
            draw(lm, "next_token")
    finally:
        lm.settings = VideoSettings(sampling=lm.settings.sampling)
    broken = VideoLM.extend(build_model("llama"), codec=lm.codec, tokenizer=build_tokenizer())
    with torch.no_grad():
        broken.model.lm_head.weight[-1] = float("nan")  # type: ignore[index,union-attr,operator]
    for mode in MODES:
        with pytest.raises(ModelError, match="logits are NaN"):
            draw(broken, mode)


def test_the_model_is_left_as_it_was() -> None:
    lm = build()
    lm.model.train()
    lm.model.set_attn_implementation("flex_attention")
    try:
        draw(lm, "maskgit")
        assert lm.model.training and lm.model.config._attn_implementation == "flex_attention"
    finally:
        lm.model.set_attn_implementation("sdpa")
        lm.model.eval()


@pytest.mark.parametrize("mode", MODES)
def test_eager_attention_and_bf16_draw_too(mode: str) -> None:
    lm = build()
    plain = draw(lm, mode)
    lm.model.set_attn_implementation("eager")
    try:
        assert torch.equal(draw(lm, mode), plain)
    finally:
        lm.model.set_attn_implementation("sdpa")
    clips = lm.generate([TextSegment("a")], mode=mode, num_frames=5, height=16, width=24, autocast=torch.bfloat16)
    assert len(clips) == 1


def test_the_reserved_cache_holds_what_the_dynamic_one_holds_and_can_be_rewound() -> None:
    config = build_model("llama").config
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ReservedCache(config, 4), DynamicCache(config=config)
    halved = ReservedCache(config, 4, stored_as=torch.bfloat16)
    for length in (3, 1, 1, 5):  # beyond what was reserved
        keys, values = torch.randn(2, 2, 4, length, 8, generator=generator)
        expected = theirs.update(keys, values, 1)
        ours.update(keys + 9, values, 1)
        ours.rewind(ours.get_seq_length(1) - length)
        for got, want in zip(ours.update(keys, values, 1), expected, strict=True):
            assert torch.equal(got, want)
        assert halved.update(keys, values, 1)[0].dtype == torch.bfloat16
        assert torch.equal(halved.layers[1].values, expected[1].bfloat16())
        assert ours.get_seq_length(1) == theirs.get_seq_length(1) == halved.get_seq_length(1)
