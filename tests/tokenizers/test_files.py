"""Videos to files of codes and back: real files, the same codes as in memory, interruptions, and what does not fit."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file

from tests.tokenizers.lively import lively_preset, smallest_codec
from tokvid.codes_file import CodesFile, write_codes
from tokvid.errors import CheckpointError, DataError, ModelError, VideoError
from tokvid.frames import to_model, to_pictures
from tokvid.video import Video, iter_video, probe_video, read_video, write_video
from tokvid_tokenizers import VideoCodec, partial_encoding
from tokvid_tokenizers.files import decode_file, encode_file, pad_to_stride, pictures_after


def moving(num_frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A smooth picture that drifts."""
    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([np.sin((rows + t) / 5), np.cos((columns - 2 * t) / 7), np.sin((rows + columns + t) / 9)], axis=-1)
        for t in range(num_frames)
    ]
    return np.rint((np.stack(frames) + 1) * 127.5).astype(np.uint8)


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    return lively_preset("tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, Video(frames=moving(150, 20, 36), fps=12.5))
    return path


def test_a_video_becomes_the_codes_of_its_frames(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    done = []
    facts = encode_file(codec, clip, tmp_path / "clip.tokvid", progress=lambda *n: done.append(n))
    assert (facts.num_frames, facts.height, facts.width, facts.fps) == (150, 20, 36, 12.5)
    assert facts.codec_id == codec.codec_id and done[-1] == (150, 150)
    frames = pad_to_stride(to_model(read_video(clip).frames), 8)
    assert frames.shape[-2:] == (24, 40)
    file = CodesFile(tmp_path / "clip.tokvid")
    assert torch.equal(torch.from_numpy(file.read())[None], codec.encode(frames))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.tokvid"]

    decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "again.mp4", metadata={"note": "here"})
    info = probe_video(tmp_path / "again.mp4")
    assert (info.height, info.width, info.fps, info.metadata["note"]) == (20, 36, 12.5, "here")
    again = read_video(tmp_path / "again.mp4").frames
    decoded = codec.decode(codec.encode(frames), num_frames=150)
    assert again.shape == (150, 20, 36, 3)
    write_video(tmp_path / "expected.mp4", Video(frames=to_pictures(decoded)[0, :, :20, :36], fps=12.5))
    assert np.array_equal(again, read_video(tmp_path / "expected.mp4").frames)


def test_a_video_is_resampled_on_the_way(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    facts = encode_file(codec, clip, tmp_path / "clip.tokvid", fps=5.0, size=(16, 24))
    expected = read_video(clip, fps=5.0, size=(16, 24)).frames
    assert (facts.num_frames, facts.height, facts.width, facts.fps) == (len(expected), 16, 24, 5.0)
    codes = CodesFile(tmp_path / "clip.tokvid").read()
    assert torch.equal(torch.from_numpy(codes)[None], codec.encode(to_model(expected)))


class StoppedError(Exception):
    """What interrupts an encoding in these tests."""


@pytest.mark.parametrize("after", [1, 4, 6, 11])
def test_an_interrupted_encoding_goes_on(
    codec: VideoCodec, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("tokvid_tokenizers.files._KEEP_EVERY", 2)
    encode_file(codec, clip, tmp_path / "whole.tokvid")
    blocks = 0

    def stop(done: int, total: int) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        encode_file(codec, clip, tmp_path / "clip.tokvid", progress=stop)
    assert not (tmp_path / "clip.tokvid").exists()
    assert (tmp_path / "clip.tokvid.parts").exists() == (after > 1)
    seen: list[int] = []
    encode_file(codec, clip, tmp_path / "clip.tokvid", progress=lambda done, _: seen.append(done))
    # One frame, then ten blocks: it goes on after the newest state, which every second push leaves.
    assert seen[:1] == [min(1 + 16 * (after // 2 * 2), 150)]
    assert (tmp_path / "clip.tokvid").read_bytes() == (tmp_path / "whole.tokvid").read_bytes()
    assert not (tmp_path / "clip.tokvid.parts").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("after", [1, 4])
def test_files_go_through_a_codec_on_a_gpu(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    on_gpu = lively_preset("tiny").cuda()
    test_an_interrupted_encoding_goes_on(on_gpu, clip, tmp_path, monkeypatch, after)
    frames = pad_to_stride(to_model(read_video(clip).frames), 8).cuda()
    codes = CodesFile(tmp_path / "clip.tokvid").read()
    assert torch.equal(torch.from_numpy(codes)[None], on_gpu.encode(frames).cpu())
    assert decode_file(on_gpu, tmp_path / "clip.tokvid", tmp_path / "again.mp4").num_frames == 150


@pytest.mark.parametrize("fps", [12.5, 10.0, 12.0, 15.625, 25.0])
def test_what_is_left_of_a_video_is_what_a_whole_reading_gives(clip: Path, fps: float) -> None:
    """At 10 and 15.625 of 12.5 frames a second every fourth or fifth frame falls on the very edge of two pictures."""
    whole = list(iter_video(clip, fps=fps))
    for done in range(1, len(whole)):
        rest = list(itertools.islice(pictures_after(done, clip, fps, None), 5))
        assert np.array_equal(rest, whole[done : done + 5]), done


def test_ctrl_c_keeps_all_that_was_encoded(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    encode_file(codec, clip, tmp_path / "whole.tokvid")
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 4:  # the block after it is encoded, too
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"65 frames of .*clip.mp4 are kept: encode it again to go on"):
        encode_file(codec, clip, tmp_path / "clip.tokvid", progress=interrupt)
    assert seen[-1] == 65
    seen.clear()
    encode_file(codec, clip, tmp_path / "clip.tokvid", progress=lambda done, _: seen.append(done))
    assert seen[0] == 81, "it goes on with the next block"
    assert (tmp_path / "clip.tokvid").read_bytes() == (tmp_path / "whole.tokvid").read_bytes()


def test_two_encodings_into_one_file_are_refused(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    program = """import sys
from tokvid.run_lock import only_run
with only_run(sys.argv[1]):
    print('held', flush=True)
    input()"""
    command = [sys.executable, "-c", program, str(tmp_path / "clip.tokvid.parts")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"another run .process {other.pid} on .* writes into .*parts"):
            encode_file(codec, clip, tmp_path / "clip.tokvid")
        other.communicate("\n")
    encode_file(codec, clip, tmp_path / "clip.tokvid")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.tokvid"]


def test_parts_of_something_else_are_not_joined(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 40:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokvid_tokenizers.files._KEEP_EVERY", 1)
        with pytest.raises(StoppedError):
            encode_file(codec, clip, tmp_path / "clip.tokvid", progress=stop)
    parts = tmp_path / "clip.tokvid.parts"
    with pytest.raises(DataError, match="another encoding"):
        encode_file(codec, clip, tmp_path / "clip.tokvid", fps=6.0)
    with pytest.raises(DataError, match="another encoding"):
        encode_file(smallest_codec(), clip, tmp_path / "clip.tokvid")
    assert parts.is_dir()
    (parts / "body.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="shorter than its state"):
        encode_file(codec, clip, tmp_path / "clip.tokvid")
    save_file({"waiting": np.zeros(1, np.float32)}, parts / "state.safetensors")
    with pytest.raises(DataError, match="another encoding"):
        encode_file(codec, clip, tmp_path / "clip.tokvid")
    (parts / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="is torn"):
        encode_file(codec, clip, tmp_path / "clip.tokvid")


def test_the_codes_of_another_codec_are_refused(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    encode_file(codec, clip, tmp_path / "clip.tokvid")
    other = lively_preset("tiny")
    with torch.no_grad():
        other.decoder.head.project.bias.add_(0.1)
    with pytest.raises(ModelError, match=codec.codec_id):
        decode_file(other, tmp_path / "clip.tokvid", tmp_path / "again.mp4")
    assert not (tmp_path / "again.mp4").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"temporal_stride": 5, "num_frames": 190},
        {"spatial_stride": 4, "height": 12, "width": 20},
        {"codebook_size": 1023},
        {"num_codebooks": 3, "height": 8},
    ],
    ids=str,
)
def test_a_file_that_contradicts_its_codec_is_damaged(
    codec: VideoCodec, clip: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    encode_file(codec, clip, tmp_path / "clip.tokvid")
    file = CodesFile(tmp_path / "clip.tokvid")
    facts = dataclasses.replace(file.facts, **change)  # type: ignore[arg-type]
    codes = file.read().reshape(facts.num_codebooks, file.latent_frames, *facts.cells)
    write_codes(tmp_path / "clip.tokvid", codes, facts)
    with pytest.raises(CheckpointError, match=rf"is damaged: its {next(iter(change))} is \d+, its codec's \d+$"):
        decode_file(codec, tmp_path / "clip.tokvid", tmp_path / "again.mp4")
    assert not (tmp_path / "again.mp4").exists()


def test_what_is_no_video_leaves_nothing_behind(codec: VideoCodec, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        encode_file(codec, tmp_path / "text.mp4", tmp_path / "a.tokvid")
    cut_short = tmp_path / "short.mp4"
    write_video(tmp_path / "long.mkv", Video(frames=moving(60, 16, 16), fps=10))
    data = (tmp_path / "long.mkv").read_bytes()
    cut_short.with_suffix(".mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="short"):
        encode_file(codec, cut_short.with_suffix(".mkv"), tmp_path / "a.tokvid")
    assert not (tmp_path / "a.tokvid").exists()
    assert not (tmp_path / f"a.tokvid{partial_encoding.SUFFIX}").exists()
