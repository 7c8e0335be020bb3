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
from tokvid.diffusion_head import HeadConfig
from tokvid.errors import CheckpointError, ConfigError, DataError, ModelError, ShapeError
from tokvid.flow import Solver
from tokvid.frames import to_pictures
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.codec_config import VidTokConfig
from tokvid_tokenizers.files import _decoded, decode_file, encode_file
from tokvid_tokenizers.quantizers import FSQConfig, KLConfig
from tokvid_tokenizers.refiner import FrameRefinement, Refiner, RefinerConfig, Refining
from tokvid_tokenizers.refiner_training import RefinerRecipe, RefinerTrainingConfig, _Lost, train_refiner

STEPS = FrameRefinement(steps=2, solver="euler")


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    return load_codec("preset:tiny")


def build(
    codec: VideoCodec,
    *,
    lively: bool = True,
    brighter: float = 0.0,
    refinement: FrameRefinement = STEPS,
    **changes: Any,
) -> Refiner:
    """With a head that was not trained: ``lively`` of any weights, and ``brighter`` by so much in every pixel."""
    config = RefinerConfig(**{"width": 16, "noise": 0.2, **changes})
    untrained = Refiner(codec, config, None, refinement)
    torch.manual_seed(4)
    count = untrained.channels
    head = untrained.new_head(HeadConfig(width=16, depth=1), (0.05,) * count, (0.1,) * count, (5.0,) * count).eval()
    if lively:
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    head.latent_out.bias.data[0] -= 3**0.5 * config.patch * brighter / 0.1
    return Refiner(codec, config, head, refinement)


def some_codes(codec: VideoCodec, clips: int, num_frames: int = 9, side: int = 32) -> Tensor:
    frames = torch.rand(clips, 3, num_frames, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        return codec.encode(frames)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_patches_join_again(count: int, rows: int, columns: int, patch: int) -> None:
    refiner = Refiner(load_codec("preset:tiny"), RefinerConfig(patch=patch), None, STEPS)
    image = torch.randn(count, 3, rows * patch, columns * patch)
    patches = refiner.cut(image)
    assert patches.shape == (count, rows, columns, refiner.channels)
    torch.testing.assert_close(refiner.joined(patches), image, rtol=0, atol=1e-5)
    own = patches[0, -1, -1]
    torch.testing.assert_close(own.square().sum(), image[0, :, -patch:, -patch:].square().sum())
    torch.testing.assert_close(own[0], image[0, :, -patch:, -patch:].sum() / (3**0.5 * patch))  # its brightness


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


def test_an_untrained_head_gives_the_plain_frames_and_noise_that_stands_still(codec: VideoCodec) -> None:
    refiner = build(codec, lively=False, refinement=FrameRefinement(steps=3, temperature=0.0), noise=0.01)
    plain = torch.rand(6, 2, 3, 32, 32) - 0.5
    under_way = Refining(refiner, torch.arange(2))
    for frame in plain:
        torch.testing.assert_close(under_way.push(frame), frame, rtol=0, atol=1e-5)
    refiner.refinement = FrameRefinement(steps=3, temperature=2.0)
    under_way = Refining(refiner, torch.arange(2))
    noise = torch.stack([under_way.push(frame) - frame for frame in plain])
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_velocity_is_of_what_is_near_it_and_was_before_it(looks: int, codec: VideoCodec) -> None:
    """A change in one patch, now or before, is seen as far as there are looks, and nowhere else."""
    head = build(codec, looks=looks).head
    assert head is not None
    torch.manual_seed(0)
    now, otherwise, times = torch.randn(2, 8, 8, 48), torch.randn(2, 8, 8, 3, 48), torch.tensor([0.3, 0.9])
    before = head.velocity(now, otherwise, times)
    for changed in (now, *otherwise.unbind(3)):
        changed[0, 3, 3] += 1.0
        after = head.velocity(now, otherwise, times)
        sees = list(range(3 - looks, 4 + looks))
        moved = (after != before).any(3)
        assert not moved[1].any()
        assert moved[0].nonzero().unique().tolist() == sees and int(moved[0].sum()) == len(sees) ** 2
        changed[0, 3, 3] -= 1.0
        before = head.velocity(now, otherwise, times)  # rounded otherwise
    calm = head.velocity(now, otherwise, times, strength=0.0)
    torch.testing.assert_close(head.velocity(now, otherwise, times, strength=2.0) - before, before - calm)
    assert not head.velocity(now, torch.zeros_like(otherwise), times, strength=0.0).any(), "nothing else averages"
    later = head.velocity(now, otherwise, torch.tensor([0.4, 0.9]))
    assert (later[0] != before[0]).any(2).all() and torch.equal(later[1], before[1])


def test_a_code_that_changes_changes_no_earlier_frame(codec: VideoCodec) -> None:
    refiner, codes = build(codec), some_codes(codec, 1)
    changed = codes.clone()
    changed[0, 0, 2, 0, 0] = (changed[0, 0, 2, 0, 0] + 1) % codec.codebook_size
    before, after = refiner.refine(codes), refiner.refine(changed)
    begins = 1 + codec.temporal_stride
    assert torch.equal(before[:, :, :begins], after[:, :, :begins])
    assert not torch.equal(before[:, :, begins:], after[:, :, begins:])


def lost_of(refiner: Refiner, side: int = 16, **training: Any) -> _Lost:
    data = {"kind": "sprites", "size": [side, side], "num_frames": 6, "train_clips": 4, "held_out_clips": 2}
    clips = clips_of(from_mapping(RefinerRecipe, {"output": "none", "codec": "none", "data": data}))
    return _Lost(refiner, clips, RefinerTrainingConfig(**{"frames_a_clip": 6, **training}))


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_training_shows_what_drawing_sees(
    patch: int, solver: Solver, codec: VideoCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a head that says the true velocities, every frame arrives, and on its way it has seen what training shows."""
    refiner = build(codec, patch=patch, noise=0.0, refinement=FrameRefinement(steps=2, solver=solver))
    head = refiner.head
    assert head is not None
    lost = lost_of(refiner)
    frames, plain = lost._decoded([0, 1, 2, 3])
    seen: list[tuple[Tensor, ...]] = []
    truth = torch.empty(0)

    def velocity(now: Tensor, otherwise: Tensor, times: Tensor, *, strength: float = 1.0) -> Tensor:
        seen.append((now, otherwise, times))
        return truth

    monkeypatch.setattr(head, "velocity", velocity)
    under_way, drawn = Refining(refiner, torch.arange(4)), []
    for number in range(6):
        starts, ends = (head.standardise(refiner.cut(of[:, :, number])) for of in (plain, frames))
        truth = starts - ends
        refined = under_way.push(plain[:, :, number])
        torch.testing.assert_close(refined, frames[:, :, number], rtol=0, atol=1e-5)
    drawn, seen = seen, []
    for time in {float(times[0]) for _, _, times in drawn}:
        monkeypatch.setattr(head, "draw_times", lambda count, device, time=time: torch.full((count,), time))
        truth = torch.zeros(1)
        lost.loss(head, *lost.batch([0, 1, 2, 3], 0))
        shown = rows([tuple(part[:24] for part in seen.pop())])  # the first of the repeats
        wanted = rows([each for each in drawn if float(each[2][0]) == time])
        apart = torch.cdist(shown, wanted, compute_mode="donot_use_mm_for_euclid_dist")
        assert float(apart.min(dim=1).values.max()) < 1e-3 and float(apart.min(dim=0).values.max()) < 1e-3


def rows(seen: list[tuple[Tensor, ...]]) -> Tensor:
    """All that is seen of each frame."""
    return torch.cat([torch.cat([now.flatten(1), otherwise.flatten(1)], dim=1) for now, otherwise, _ in seen])


def test_an_untrained_head_loses_all_that_decoding_does(codec: VideoCodec) -> None:
    refiner = build(codec, lively=False, noise=0.0)
    assert refiner.head is not None
    for stillness in (0.0, 1.0):
        lost = lost_of(refiner, stillness=stillness)
        ways, drawn = lost.batch([0, 1, 2, 3], 0)
        assert drawn.shape == (4 * 6 * 4 * 4, refiner.channels)
        torch.manual_seed(1)
        loss = lost.loss(refiner.head, ways, drawn)
        errors = ((ways.starts - ways.ends)[:, 0] / 0.1).square().mean(3).repeat(4, 1, 1)
        torch.manual_seed(1)
        torch.randn(96, 1, 4, 4, 48)
        times = refiner.head.draw_times(96, device=errors.device).repeat(1)
        points = ways.ends.repeat(4, 1, 1, 1, 1)
        points = points + times[:, None, None, None, None] * (ways.starts.repeat(4, 1, 1, 1, 1) - points)
        change = ((points[:, 1:] - points[:, :1]) / 0.1).square().mean((1, 4))
        counts = (0.05 + change) ** -stillness
        torch.testing.assert_close(loss, (counts * errors).sum() / counts.sum())


def test_all_of_a_head_learns(codec: VideoCodec) -> None:
    refiner = build(codec)
    assert refiner.head is not None
    lost = lost_of(refiner)
    lost.loss(refiner.head, *lost.batch([0, 1, 2, 3], 0)).backward()
    for name, parameter in refiner.head.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_a_file_is_refined_as_the_whole_is(codec: VideoCodec, tmp_path: Path) -> None:
    """Of a size off the stride; what is written is the refined clip, as far as a video file keeps it."""
    pictures = np.full((11, 21, 37, 3), 90, np.uint8)
    pictures[:, :, 20:] = 160
    write_video(tmp_path / "clip.mkv", Video(frames=pictures[:, :20, :36], fps=8.0), crf=0)
    encode_file(codec, tmp_path / "clip.mkv", tmp_path / "clip.tokvid")
    refiner = build(codec, brighter=0.4, noise=0.0)  # what a video file keeps
    file = CodesFile(tmp_path / "clip.tokvid")
    decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "plain.mkv")
    decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "refined.mkv", refiner=refiner)
    whole = refiner.refine(torch.from_numpy(file.read())[None], 11)
    under_way = Refining(refiner, torch.tensor([0]))
    decoded = islice(_decoded(codec.stream_decoder(), codec, file), 11)
    frames = [under_way.push(frame) for frame in decoded]
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
    if causal:
        pictures = to_pictures(refined)[0]
        write_video(tmp_path / "clip.mkv", Video(frames=pictures, fps=8.0), crf=0)
        encode_file(codec, tmp_path / "clip.mkv", tmp_path / "clip.tokvid")
        file = CodesFile(tmp_path / "clip.tokvid")
        whole = refiner.refine(torch.from_numpy(file.read())[None], len(pictures))
        frames = islice(_decoded(codec.stream_decoder(), codec, file), len(pictures))
        under_way = Refining(refiner, torch.tensor([0]))
        assert torch.equal(torch.stack([under_way.push(frame) for frame in frames], dim=2), whole)


def test_what_does_not_fit_is_said(codec: VideoCodec) -> None:
    with pytest.raises(ConfigError, match="divides the codec's spatial stride"):
        Refiner(codec, RefinerConfig(patch=3), None, STEPS)
    with pytest.raises(ConfigError, match="patch must be at least 1"):
        RefinerConfig(patch=0)
    with pytest.raises(ModelError, match="has no head"):
        Refining(Refiner(codec, RefinerConfig(), None, STEPS), torch.tensor([0]))
    for before in ((), (0, 1), (2, 2)):
        with pytest.raises(ConfigError, match="before counts back to earlier frames"):
            RefinerConfig(before=before)
    with pytest.raises(ConfigError, match="strength must be at least 0"):
        FrameRefinement(strength=-0.5)
    with pytest.raises(ConfigError, match="spread has a positive number for each of 48 channels"):
        Refiner(codec, RefinerConfig(), None, STEPS).new_head(HeadConfig(), (0.0,) * 48, (1.0,) * 48, (0.0,) * 48)
    with pytest.raises(ModelError, match="for patches of 12 numbers and 3 earlier frames, this refiner has 48 and 3"):
        Refiner(codec, RefinerConfig(patch=4), build(codec, patch=2).head, STEPS)
    with pytest.raises(ModelError, match="48 numbers and 1 earlier frames, this refiner has 48 and 3"):
        Refiner(codec, RefinerConfig(), build(codec, before=(2,)).head, STEPS)
    side = codec.spatial_stride
    under_way = Refining(build(codec), torch.tensor([0]))
    with pytest.raises(ShapeError, match=f"multiples of {side} as sides, got {side}x{side + 4}"):
        under_way.push(torch.zeros(1, 3, side, side + 4))
    under_way.push(torch.zeros(1, 3, side, side))
    with pytest.raises(ShapeError, match="expected a frame as the first one"):
        under_way.push(torch.zeros(1, 3, side, 2 * side))
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
