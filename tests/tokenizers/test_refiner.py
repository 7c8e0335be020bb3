"""The refiner: what a patch is drawn after, that whole clips and streams agree, and that it is trained and kept."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokvid import Video, flow_training, read_video, write_video
from tokvid.cli import main as command
from tokvid.codes_file import CodesFile
from tokvid.config import from_mapping
from tokvid.data.clips import ClipArray, materialise, open_clips
from tokvid.diffusion_head import DiffusionHead, HeadConfig
from tokvid.errors import CheckpointError, ConfigError, DataError, ModelError, ShapeError
from tokvid.flow import Refinement
from tokvid.frames import to_pictures
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.codec_config import VidTokConfig
from tokvid_tokenizers.files import _decoded, _refined, decode_file, encode_file
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig
from tokvid_tokenizers.refiner import SETS, Refiner, RefinerConfig, Refining, Seen
from tokvid_tokenizers.refiner_training import RefinerRecipe, RefinerTrainingConfig, _Lost, train_refiner

STEPS = Refinement(steps=2, solver="euler")


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    return load_codec("preset:tiny")


def build(
    codec: VideoCodec,
    *,
    lively: bool = True,
    refinement: Refinement = STEPS,
    mean: float = 0.0,
    deviation: float = 0.1,
    **changes: Any,
) -> Refiner:
    config = RefinerConfig(**{"width": 16, **changes})
    untrained = Refiner(codec, config, None, refinement)
    torch.manual_seed(4)
    others = untrained.channels - 1
    brighter = 3**0.5 * config.patch * mean  # by the mean in every pixel
    head = untrained.new_head(
        HeadConfig(width=16, depth=1), (brighter, *(0.0,) * others), (deviation,) * (1 + others)
    ).eval()
    if lively:
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return Refiner(codec, config, head, refinement)


def some_codes(codec: VideoCodec, clips: int, num_frames: int = 9, side: int = 32) -> Tensor:
    frames = torch.rand(clips, 3, num_frames, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        return codec.encode(frames)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_patches_join_again_and_sets_share_them_out(count: int, rows: int, columns: int, patch: int) -> None:
    refiner = Refiner(load_codec("preset:tiny"), RefinerConfig(patch=patch), None, STEPS)
    image = torch.randn(count, 3, rows * patch, columns * patch)
    patches = refiner.cut(image)
    assert patches.shape == (count, rows, columns, refiner.channels)
    torch.testing.assert_close(refiner.joined(patches), image, rtol=0, atol=1e-5)
    own = patches[0, -1, -1]
    torch.testing.assert_close(own.square().sum(), image[0, :, -patch:, -patch:].square().sum())
    torch.testing.assert_close(own[0], image[0, :, -patch:, -patch:].sum() / (3**0.5 * patch))  # its brightness
    masks = [refiner.set_mask(number, rows, columns) for number in range(len(SETS))]
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(rows, columns, dtype=torch.int64))
    for number in range(len(SETS)):
        assert torch.equal(refiner.drawn_mask(number, rows, columns), torch.stack(masks)[:number].any(0))


def test_no_neighbour_is_drawn_in_the_same_set() -> None:
    refiner = Refiner(load_codec("preset:tiny"), RefinerConfig(), None, STEPS)
    for number in range(len(SETS)):
        mask = refiner.set_mask(number, 6, 6)
        assert not (mask[1:] & mask[:-1]).any() and not (mask[:, 1:] & mask[:, :-1]).any()
        assert not (mask[1:, 1:] & mask[:-1, :-1]).any() and not (mask[1:, :-1] & mask[:-1, 1:]).any()


def test_frames_of_a_group_belong_to_their_latent_frame(codec: VideoCodec) -> None:
    refiner = build(codec)
    stride = codec.temporal_stride
    found = [(refiner.latent_of(number), refiner.phase_of(number)) for number in range(2 * stride + 1)]
    groups = [(1 + group, phase) for group in range(2) for phase in range(1, stride + 1)]
    assert found == [(0, 0), *groups]


def test_the_frames_change_by_seed_and_sample_alone(codec: VideoCodec) -> None:
    refiner, codes = build(codec), some_codes(codec, 3)
    plain = codec.decode(codes, 8)
    both = refiner.refine(codes, 8, seed=3)
    assert both.shape == plain.shape and both.abs().max() <= 1 and (both - plain).abs().max() > 1e-3
    assert torch.equal(refiner.refine(codes, 8, seed=3), both)
    assert not torch.allclose(refiner.refine(codes, 8, seed=4), both, atol=1e-3)
    alone = refiner.refine(codes[1:2], 8, seed=3, first_sample=1)
    torch.testing.assert_close(alone, both[1:2], rtol=0, atol=1e-5)
    assert not torch.allclose(refiner.refine(codes[1:2], 8, seed=3), both[1:2], atol=1e-3)


def test_an_untrained_head_without_noise_gives_the_plain_frames(codec: VideoCodec) -> None:
    refiner = build(codec, lively=False, refinement=Refinement(steps=3, temperature=0.0))
    codes = some_codes(codec, 1)
    torch.testing.assert_close(refiner.refine(codes), codec.decode(codes), rtol=0, atol=1e-6)


def test_a_patch_is_drawn_after_what_is_near_it_and_before_it(codec: VideoCodec) -> None:
    """Of all that is given, a change in one patch or cell is seen as far as there are looks, and nowhere else; what was
    not drawn yet is not seen."""
    for looks in (0, 1, 2):
        refiner = build(codec, looks=looks)
        assert refiner.head is not None
        kept = torch.zeros(1, 8, 8, refiner.channels)
        for number in range(len(SETS)):
            seen = Seen(
                plain=kept,
                plain_before=kept,
                drawn_before=kept,
                drawn=kept,
                known=refiner.drawn_mask(number, 8, 8)[None],
                vectors=torch.zeros(1, codec.quantizer.dim, 4, 4),
                phase=torch.tensor([2]),
                number=torch.tensor([number]),
            )
            before = refiner.conditions(refiner.head, seen)
            assert before.shape == (1, 8, 8, 16)
            for name in ("plain", "plain_before", "drawn_before", "drawn", "vectors"):
                changed = getattr(seen, name).clone()
                if name == "vectors":
                    changed[:, :, 1, 1] = 1.0  # of patches 2 and 3
                else:
                    changed[:, 3, 3] = 1.0
                moved = (refiner.conditions(refiner.head, replace(seen, **{name: changed})) != before).any(3)[0]
                first = 2 if name == "vectors" else 3
                sees = list(range(max(0, first - looks), 4 + looks))
                if name == "drawn" and not seen.known[0, 3, 3]:
                    sees = []
                assert moved.nonzero().unique().tolist() == sees, (name, number)
                assert int(moved.sum()) == len(sees) ** 2, (name, number)
        nothing = replace(seen, phase=torch.tensor([0]))
        drawn = replace(nothing, drawn_before=torch.ones_like(kept))
        assert torch.equal(refiner.conditions(refiner.head, nothing), refiner.conditions(refiner.head, drawn))


def test_a_code_that_changes_changes_no_earlier_frame(codec: VideoCodec) -> None:
    refiner, codes = build(codec), some_codes(codec, 1)
    changed = codes.clone()
    changed[0, 0, 2, 0, 0] = (changed[0, 0, 2, 0, 0] + 1) % codec.codebook_size
    before, after = refiner.refine(codes), refiner.refine(changed)
    begins = 1 + codec.temporal_stride
    assert torch.equal(before[:, :, :begins], after[:, :, :begins])
    assert not torch.equal(before[:, :, begins:], after[:, :, begins:])


@pytest.mark.parametrize("patch", [1, 4])
def test_training_shows_what_drawing_sees(patch: int, codec: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the truth as what was drawn, and no noise on it, the conditions are the same numbers."""
    data = {"kind": "sprites", "size": [32, 32], "num_frames": 6, "train_clips": 4, "held_out_clips": 2}
    clips = clips_of(from_mapping(RefinerRecipe, {"output": "none", "codec": "none", "data": data}))
    refiner = build(codec, patch=patch)
    config = RefinerTrainingConfig(frames_a_clip=6, patches=10**6, given_noise=0.0)
    lost = _Lost(refiner, clips, config)
    assert refiner.head is not None
    torch.manual_seed(0)
    given, wanted = lost.batch([0, 1, 2, 3], 0)
    shown = lost.conditions(refiner.head, given)
    frames, plain, vectors = lost._decoded([0, 1, 2, 3])
    truth, seen = refiner.cut((frames - plain).transpose(1, 2).flatten(0, 1)).unflatten(0, (4, 6)), []
    under_way = Refining(refiner, torch.arange(4))

    def drawn(head: DiffusionHead, conditions: Tensor, places: Tensor) -> Tensor:
        patches = truth.flatten(1, 3)[:, places]
        seen.append(torch.cat([conditions, patches], dim=2).flatten(0, 1))
        return patches

    monkeypatch.setattr(under_way, "_drawn", drawn)
    for number in range(6):
        refined = under_way.push(plain[:, :, number], vectors[:, :, refiner.latent_of(number)])
        torch.testing.assert_close(refined, frames[:, :, number], rtol=0, atol=1e-5)
    whole = torch.cat(seen)
    rows = torch.cat([shown, wanted], dim=1)
    assert len(rows) == len(whole) // len(SETS), "each frame is shown for one of its sets"
    nearest = torch.cdist(rows[::37].detach().double(), whole.double()).min(dim=1).values
    assert float(nearest.max()) < 1e-3


def test_what_looks_at_a_frame_learns_with_the_head(codec: VideoCodec) -> None:
    data = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 4, "held_out_clips": 2}
    clips = clips_of(from_mapping(RefinerRecipe, {"output": "none", "codec": "none", "data": data}))
    refiner = build(codec)
    assert refiner.head is not None
    lost = _Lost(refiner, clips, RefinerTrainingConfig(frames_a_clip=5, patches=24))
    given, wanted = lost.batch([0, 1, 2, 3], 0)
    assert len(wanted) == 24
    refiner.head.loss(wanted, lost.conditions(refiner.head, given)).backward()
    for name, parameter in refiner.head.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_a_file_is_refined_as_the_whole_is(codec: VideoCodec, tmp_path: Path) -> None:
    """Of a size off the stride; what is written is the refined clip, as far as a video file keeps it."""
    pictures = np.full((11, 21, 37, 3), 90, np.uint8)
    pictures[:, :, 20:] = 160
    write_video(tmp_path / "clip.mkv", Video(frames=pictures[:, :20, :36], fps=8.0), crf=0)
    encode_file(codec, tmp_path / "clip.mkv", tmp_path / "clip.tokvid")
    refiner = build(codec, mean=0.4, deviation=0.01)  # what a video file keeps
    file = CodesFile(tmp_path / "clip.tokvid")
    decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "plain.mkv")
    decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "refined.mkv", refiner=refiner)
    whole = refiner.refine(torch.from_numpy(file.read())[None], 11)
    frames = list(_refined(refiner, islice(_decoded(codec.stream_decoder(), codec, file), 11), file))
    assert torch.equal(torch.stack(frames, dim=2), whole)
    wanted = to_pictures(whole)[0, :, :20, :36].astype(float)
    plain, refined = (read_video(tmp_path / f"{name}.mkv").frames for name in ("plain", "refined"))
    assert refined.shape == (11, 20, 36, 3)
    assert abs(refined.mean() - wanted.mean()) < 3 < 20 < refined.mean() - plain.mean()
    with pytest.raises(ModelError, match="of another codec object"):
        decode_file(load_codec("preset:tiny"), tmp_path / "clip.tokvid", tmp_path / "no.mkv", refiner=refiner)


@pytest.mark.parametrize(("version", "causal"), [("1.0", False), ("1.0", True), ("1.1", True)])
def test_codecs_that_take_whole_clips_or_look_ahead_are_refined(version: Any, causal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VidTokConfig(
        version=version,
        causal=causal,
        channels=(8, 8, 8, 8),
        blocks=1,
        temporal_stride=4,
        quantizer=FSQConfig(levels=(5, 5, 5, 5)),
    )
    codec = VideoCodec(config).eval()
    refiner, codes = build(codec), some_codes(codec, 1, num_frames=8, side=16)
    refined = refiner.refine(codes)
    assert refined.shape == codec.decode(codes).shape and refined.isfinite().all()
    groups = [(refiner.latent_of(number), refiner.phase_of(number)) for number in range(8)]
    first = [(0, 0), *((0, phase) for phase in (2, 3, 4))] if not causal else [(0, 0), *((1, p) for p in (1, 2, 3))]
    assert groups[:4] == first
    if causal:
        pictures = to_pictures(refined)[0]
        write_video(tmp_path / "clip.mkv", Video(frames=pictures, fps=8.0), crf=0)
        encode_file(codec, tmp_path / "clip.mkv", tmp_path / "clip.tokvid")
        file = CodesFile(tmp_path / "clip.tokvid")
        whole = refiner.refine(torch.from_numpy(file.read())[None], len(pictures))
        frames = islice(_decoded(codec.stream_decoder(), codec, file), len(pictures))
        assert torch.equal(torch.stack(list(_refined(refiner, frames, file)), dim=2), whole)


def test_what_does_not_fit_is_said(codec: VideoCodec) -> None:
    with pytest.raises(ConfigError, match="divides the codec's spatial stride"):
        Refiner(codec, RefinerConfig(patch=3), None, STEPS)
    with pytest.raises(ConfigError, match="patch must be at least 1"):
        RefinerConfig(patch=0)
    with pytest.raises(ModelError, match="has no head"):
        Refining(Refiner(codec, RefinerConfig(), None, STEPS), torch.tensor([0]))
    small = build(codec, patch=2)
    with pytest.raises(ModelError, match="draws 12 numbers"):
        Refiner(codec, RefinerConfig(patch=4), small.head, STEPS)
    side = 2 * codec.spatial_stride
    with pytest.raises(ShapeError, match="are not those of 1x1 cells"):
        Refining(build(codec), torch.tensor([0])).push(
            torch.zeros(1, 3, side, side), torch.zeros(1, codec.quantizer.dim, 1, 1)
        )
    with pytest.raises(ModelError, match="continuous codec has no codes"):
        Refiner(VideoCodec(replace(codec.config, quantizer=KLConfig(dim=4))), RefinerConfig(), None, STEPS)  # type: ignore[arg-type]


def recipe(output: Path, **training: Any) -> RefinerRecipe:
    data = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 12, "held_out_clips": 2}
    steps = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}
    return from_mapping(
        RefinerRecipe,
        {
            "output": str(output),
            "codec": "none",
            "data": data,
            "head": {"width": 16, "depth": 1},
            "training": {**steps, **training},
            "refinement": {"steps": 2},
        },
    )


def clips_of(recipe: RefinerRecipe) -> ClipArray:
    return materialise(open_clips(recipe.data, "train"))


def interrupted_at(wanted: int, step: int) -> None:
    if step == wanted:
        signal.raise_signal(signal.SIGINT)


def test_a_stopped_training_resumes_to_the_same_refiner_and_it_is_kept_beside_its_codec(
    codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = recipe(tmp_path / "straight"), recipe(tmp_path / "stopped")
    whole = train_refiner(straight, clips_of(straight), codec=codec)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        plain = flow_training.check_finite
        patch.setattr(flow_training, "check_finite", lambda step, parts: interrupted_at(3, step) or plain(step, parts))
        train_refiner(stopped, clips_of(stopped), codec=codec)
    resumed = train_refiner(stopped, clips_of(stopped), codec=codec, resume=True)
    folder = tmp_path / "stopped" / "codec"
    again = load_codec(folder)
    loaded = Refiner.load(folder, again)
    codes = some_codes(codec, 1)
    for other in (resumed, loaded):
        assert torch.equal(other.refine(codes), whole.refine(codes))
    with pytest.raises(CheckpointError, match="seed was 0, here it is 1"):
        train_refiner(replace(stopped, seed=1), clips_of(stopped), codec=codec, resume=True)
    # By the command, and its refusals.
    write_video(tmp_path / "clip.mp4", Video(frames=clips_of(stopped).frames[0], fps=8.0))
    out, source = tmp_path / "out.mp4", str(tmp_path / "clip.mp4")
    assert command.main(["reconstruct", source, str(out), "--codec", str(folder), "--refine"]) == 0
    assert command.main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +steps +2$", said, re.MULTILINE) and re.search(r"^ +head_sha256 +\w{64}$", said, re.MULTILINE)
    codes_file, shown = tmp_path / "clip.tokvid", tmp_path / "shown.mp4"
    encode_file(again, Path(source), codes_file)
    assert command.main(["decode", str(codes_file), str(shown), "--codec", str(folder), "--refine"]) == 0
    assert np.array_equal(read_video(shown).frames, read_video(out).frames)
    assert command.main(["reconstruct", source, str(out), "-f", "--codec", "preset:tiny", "--refine"]) == 2
    assert "preset:tiny is a codec without a refiner" in capsys.readouterr().err
    with torch.no_grad():
        again.decoder.last_layer.bias.add_(0.1)  # type: ignore[union-attr,operator]
    with pytest.raises(CheckpointError, match=r"holds more than a codec \(refiner.json\)"):
        again.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="train it anew"):
        Refiner.load(folder, again)
    (folder / "refiner.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        Refiner.load(folder, codec)


def test_too_few_clips_for_a_batch_are_said(codec: VideoCodec, tmp_path: Path) -> None:
    small = recipe(tmp_path, batch_size=64)
    with pytest.raises(DataError, match="a batch needs 64 clips, the data has 12"):
        train_refiner(small, clips_of(small), codec=codec)
