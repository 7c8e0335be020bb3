"""Real files, written with PyAV in a temporary folder: what is read is what was written, or one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from tokvid.errors import ShapeError, VideoError
from tokvid.video import Video, count_frames, iter_video, probe_video, read_video, write_video
from tokvid.video_source import VideoSource

BITS = 10
ROOT = Path(__file__).resolve().parents[2]


def numbered(number: int, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """A picture that carries ``number`` as broad stripes, so that it survives any codec."""
    picture = np.zeros((height, width, 3), np.uint8)
    stripe = width // BITS
    for bit in range(BITS):
        picture[:, bit * stripe : (bit + 1) * stripe] = 230 if number >> bit & 1 else 20
    return picture


def number_of(picture: npt.NDArray[np.uint8]) -> int:
    stripe = picture.shape[1] // BITS
    row = picture[picture.shape[0] // 2, :, 1]
    return sum(int(row[bit * stripe + stripe // 2] > 128) << bit for bit in range(BITS))


def numbers(video: Video) -> list[int]:
    return [number_of(picture) for picture in video.frames]


def write(
    path: Path,
    pictures: list[npt.NDArray[np.uint8]],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    fps: int = 24,
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    movflags: str = "",
    rotation: tuple[float, bool] | None = None,
    pixel_format: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Write with PyAV itself, not with the code under test; ``pts`` are milliseconds."""
    with av.open(str(path), "w", format=container, options={"movflags": movflags} if movflags else {}) as output:
        stream: Any = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.bit_rate = 4_000_000
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """240 numbered pictures at 24 fps with a key picture every 60, in the containers people have."""
    folder = tmp_path_factory.mktemp("long")
    pictures = [numbered(n) for n in range(240)]
    kinds = {
        "mp4": ("mp4", "libx264", {"g": "60", "bf": "2"}),
        "mkv": ("matroska", "libx264", {"g": "60", "bf": "2"}),
        "ts": ("mpegts", "libx264", {"g": "60", "bf": "2"}),
        "avi": ("avi", "mpeg4", {"g": "60", "bf": "2"}),
        "mpg": ("mpeg", "mpeg2video", {"g": "60", "bf": "2"}),
        "webm": ("webm", "libvpx-vp9", {"g": "60", "deadline": "realtime", "cpu-used": "8"}),
        "gif": ("gif", "gif", {}),
        "h264": ("h264", "libx264", {"g": "60"}),
    }
    return {
        suffix: write(
            folder / f"long.{suffix}",
            pictures,
            container=container,
            codec=codec,
            fps=25 if suffix == "gif" else 24,  # a GIF counts in hundredths of a second
            options=options,
            pixel_format="rgb8" if suffix == "gif" else "yuv420p",
        )
        for suffix, (container, codec, options) in kinds.items()
    }


SUFFIXES = ["mp4", "mkv", "ts", "avi", "mpg", "webm", "gif", "h264"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_picture_comes_once_at_the_stored_rate(long_files: dict[str, Path], suffix: str) -> None:
    video = read_video(long_files[suffix])
    assert numbers(video) == list(range(240))
    info = probe_video(long_files[suffix])
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert info.fps == pytest.approx(25 if suffix == "gif" else 24)
    assert info.duration_s == pytest.approx(240 / info.fps, abs=0.1)
    assert info.num_frames in (240, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_window_holds_the_same_pictures_as_the_whole(long_files: dict[str, Path], suffix: str) -> None:
    stored = 25 if suffix == "gif" else 24
    for first, step in [(1, 1), (59, 1), (60, 2), (61, 3), (119, 1), (143, 1), (181, 1), (200, 3), (233, 3)]:
        video = read_video(long_files[suffix], start=first / stored, num_frames=3, fps=stored / step)
        assert numbers(video) == [first, first + step, first + 2 * step]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mpg", "webm"])
def test_a_late_window_is_entered_by_seeking(long_files: dict[str, Path], suffix: str) -> None:
    with VideoSource(long_files[suffix]) as source:
        assert next(source.frames_from(9.5)).time >= 7.0


def test_a_variable_frame_rate_is_resampled_by_timestamps(tmp_path: Path) -> None:
    pictures = [numbered(n) for n in range(6)]
    path = write(tmp_path / "vfr.mp4", pictures, fps=10, pts=[0, 100, 150, 600, 1000, 1100])
    # at 0.0, 0.2, 0.4, ... the picture on screen at that time
    assert numbers(read_video(path, fps=5.0, num_frames=6)) == [0, 2, 2, 3, 3, 4]
    assert numbers(read_video(path, fps=20.0, start=0.05, num_frames=4)) == [0, 1, 2, 2]


def test_duration_counts_frames_at_the_wanted_rate(long_files: dict[str, Path]) -> None:
    video = read_video(long_files["mp4"], start=2.0, duration=1.5, fps=8.0)
    assert (video.num_frames, video.fps, video.duration_s) == (12, 8.0, 1.5)
    assert numbers(video) == [48 + 3 * k for k in range(12)]


@pytest.mark.parametrize("fps", [1.0, 7.3, 8.0, 24.0, 30.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_count_frames_says_what_reading_gives(long_files: dict[str, Path], suffix: str, fps: float) -> None:
    count = count_frames(probe_video(long_files[suffix]), fps)
    assert read_video(long_files[suffix], fps=fps, size=(4, 4)).num_frames == count


def test_iterating_gives_the_frames_of_reading(long_files: dict[str, Path]) -> None:
    frames = list(iter_video(long_files["mp4"], start=1.0, duration=2.0, fps=12.0, size=(24, 32)))
    whole = read_video(long_files["mp4"], start=1.0, duration=2.0, fps=12.0, size=(24, 32))
    assert np.array_equal(np.stack(frames), whole.frames)


def test_iterating_holds_one_picture_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "big.mp4", [numbered(n, 240, 320) for n in range(60)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_video(path)) == 60
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 240 * 320 * 3  # 60 pictures would be 60


CORNERS = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], np.uint8)


def coloured_corners() -> npt.NDArray[np.uint8]:
    """48x64, red and green above blue and white."""
    return CORNERS.repeat(24, axis=0).repeat(32, axis=1)


def corners_of(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = picture.shape[:2]
    return picture[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_and_mirrored_files_are_read_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    # PyAV's angle is counter-clockwise, the mirror comes after it.
    path = write(tmp_path / "r.mp4", [coloured_corners()] * 3, rotation=(degrees, mirrored), pixel_format="yuv444p")
    upright = np.rot90(CORNERS, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    size = (64, 48) if degrees % 180 else (48, 64)
    video = read_video(path)
    assert video.frames.shape == (3, *size, 3)
    assert np.abs(corners_of(video.frames[0]).astype(int) - upright).max() < 25
    info = probe_video(path)
    assert (info.height, info.width) == size
    if not mirrored:
        assert info.rotation == (360 - degrees) % 360
    small = read_video(path, size=(20, 16), num_frames=1)
    assert small.frames.shape == (1, 20, 16, 3)
    assert np.abs(corners_of(small.frames[0]).astype(int) - upright).max() < 25


def test_a_crooked_rotation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "crooked.mp4", [coloured_corners()], rotation=(30, False))
    with pytest.raises(VideoError, match=r"crooked\.mp4.*90 degrees"):
        read_video(path)


def test_resizing_covers_and_cuts_the_centre(tmp_path: Path) -> None:
    picture = np.full((48, 96, 3), 20, np.uint8)
    picture[:, 32:64] = 220  # the middle third, which is 32 wide
    path = write(tmp_path / "wide.mp4", [picture], pixel_format="yuv444p")
    cut = read_video(path, size=(24, 16)).frames[0]
    assert cut.min() > 190  # exactly the middle third remains
    stretched = read_video(path, size=(24, 24), crop="none").frames[0]
    assert stretched[12, :6].max() < 50 and stretched[12, 10:14].min() > 190 and stretched[12, 18:].max() < 50
    tall = read_video(path, size=(96, 32)).frames[0]
    assert tall.shape == (96, 32, 3) and tall.min() > 190


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    path = write(tmp_path / "c.mp4", [np.repeat(checkers[..., None], 3, 2).astype(np.uint8)], options={"crf": "1"})
    small = read_video(path, size=(30, 30)).frames[0].astype(float)
    assert abs(small.mean() - 127.5) < 4 and small.std() < 4


def test_pixels_that_are_not_square_keep_the_display_aspect(tmp_path: Path) -> None:
    picture = np.full((48, 48, 3), 20, np.uint8)
    picture[:, 12:36] = 220
    path = write(tmp_path / "sar.mp4", [picture], pixel_aspect=Fraction(2, 1), pixel_format="yuv444p")
    assert read_video(path, size=(24, 24)).frames[0, :, 2:-2].min() > 190  # shown at 96x48, the middle half remains


@pytest.mark.parametrize("matrix", [1, 5])
def test_colours_follow_the_matrix_of_the_file(tmp_path: Path, matrix: int) -> None:
    path = tmp_path / "c.mp4"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace = matrix
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), (200, 30, 60), np.uint8), format="rgb24")
        output.mux(stream.encode(frame.reformat(format="yuv444p", dst_colorspace=matrix)))
        output.mux(stream.encode(None))
    assert np.abs(read_video(path).frames[0].astype(int) - (200, 30, 60)).max() <= 2


def smooth(num_frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([60 + 2 * x + 3 * t, 200 - 2 * y, 40 + x + y + 4 * t], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("size", [(48, 64), (33, 47), (2, 2), (1, 1)])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    frames = smooth(9, *size)
    path = tmp_path / f"clip.{suffix}"
    write_video(path, Video(frames=frames, fps=7.5))
    back = read_video(path)
    assert back.fps == pytest.approx(7.5)
    assert back.frames.shape == frames.shape
    difference = back.frames.astype(int) - frames
    assert np.abs(difference).mean() < 2.5
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 1.5  # no colour is shifted
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_one_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", Video(frames=smooth(1, 16, 16), fps=8.0))
    assert read_video(tmp_path / "one.mp4").num_frames == 1


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_provenance_comes_back(tmp_path: Path, suffix: str) -> None:
    provenance = json.dumps({"codec": "kö=;#\\\"'\n", "seed": 3, "nested": {"long": "x" * 5000}})
    path = tmp_path / f"p.{suffix}"
    write_video(path, Video(frames=smooth(2, 16, 16), fps=8.0), metadata={"tokvid": provenance, "Second": "2"})
    metadata = probe_video(path).metadata
    assert json.loads(metadata["tokvid"]) == json.loads(provenance)
    assert metadata["second"] == "2"


def test_a_lower_crf_is_nearer(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    errors = []
    for crf in (1, 45):
        write_video(tmp_path / "n.mp4", Video(frames=noise, fps=8.0), crf=crf)
        errors.append(np.abs(read_video(tmp_path / "n.mp4").frames.astype(int) - noise).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("side", [32, 48])
def test_the_same_pictures_give_the_same_file(tmp_path: Path, side: int) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (17, side, side, 3), dtype=np.uint8)
    written = set()
    for number in range(40):
        # What the encoder takes for its own was in use before.
        used = [np.full(int(size), 255, np.uint8) for size in rng.integers(1, 100_000, 20)]
        del used
        path = tmp_path / f"{number}.mp4"
        write_video(path, Video(frames=pictures, fps=8.0))
        written.add(path.read_bytes())
    assert len(written) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """The file size limit of the process stands in for a full disk: the kernel refuses the write in the same way."""
    path = tmp_path / "clip.mp4"
    write_video(path, Video(frames=smooth(2, 16, 16), fps=8.0))
    before = path.read_bytes()
    program = """
import resource, sys, numpy as np
from tokvid.errors import VideoError
from tokvid.video import Video, write_video
frames = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    write_video(sys.argv[1], Video(frames=frames, fps=8.0), crf=1)
except VideoError as error:
    print(error)
"""
    pytest.importorskip("resource")
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, cwd=root)
    assert "clip.mp4: could not be written" in result.stdout, result.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def broken_files(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    whole = write(folder / "whole.mp4", [numbered(n) for n in range(48)])
    (folder / "zero.mp4").touch()
    (folder / "junk.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
    (folder / "text.mp4").write_text("not a video\n" * 200)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (folder / "tail.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_audio(folder / "song.mp4")
    names = ["zero", "junk", "text", "list", "tail", "song", "missing"]
    return {name: folder / f"{name}.mp4" for name in names} | {"folder": folder}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("zero", "empty"),
        ("junk", "cannot be read as a video"),
        ("text", "cannot be read as a video"),
        ("list", "playlist"),
        ("tail", "cannot be read as a video"),
        ("song", "no video in it, only audio"),
        ("missing", "no such file"),
        ("folder", "is a folder"),
    ],
)
def test_a_file_that_is_no_video_gives_one_error_that_names_it(tmp_path: Path, kind: str, says: str) -> None:
    path = broken_files(tmp_path / "broken")[kind]
    for action in (probe_video, read_video, lambda p: list(iter_video(p))):
        with pytest.raises(VideoError, match=says) as caught:
            action(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "container", "codec", "movflags"),
    [
        ("cut.mp4", "mp4", "libx264", "faststart"),
        ("cut.mkv", "matroska", "libx264", ""),
        ("cut.webm", "webm", "libvpx-vp9", ""),
    ],
)
def test_a_file_cut_short_is_noticed(tmp_path: Path, name: str, container: str, codec: str, movflags: str) -> None:
    """Its header is whole and tells how long the video should be."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 64, 3), np.uint8)
    path = write(tmp_path / name, list(noise), container=container, codec=codec, movflags=movflags, options={"g": "12"})
    assert read_video(path).num_frames == 48
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    for window in ({}, {"fps": 4.0}, {"start": 1.5, "num_frames": 6}):
        with pytest.raises(VideoError, match=f"{name}: (is cut short|cannot be read)"):
            read_video(path, **window)  # type: ignore[arg-type]
    assert read_video(path, num_frames=5).num_frames == 5  # what is there can be read


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    """FFmpeg patches up what it cannot decode, and marks it; what it does not notice nobody can."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(256, size=(48, 64, 3)).astype(np.uint8) for _ in range(30)]
    whole = write(tmp_path / "whole.mp4", noise, options={"bf": "0", "g": "10"}).read_bytes()
    with av.open(str(tmp_path / "whole.mp4")) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    damaged, found = tmp_path / "damaged.mp4", 0
    for number in range(11, 26):
        position, size = packets[number]
        content = bytearray(whole)
        content[position + size // 2 : position + size // 2 + 20] = rng.bytes(20)
        damaged.write_bytes(content)
        with av.open(str(damaged)) as file:
            try:
                marked = [frame.time for frame in file.decode(video=0) if frame.is_corrupt]
            except av.error.FFmpegError:
                continue
        if not marked:
            continue
        found += 1
        with pytest.raises(VideoError, match=rf"damaged\.mp4: the picture at {marked[0]:.2f} s is damaged"):
            read_video(damaged)
        assert read_video(damaged, num_frames=10).num_frames == 10, "before it all is well"
    assert found > 3


def test_a_window_beyond_the_end_says_what_there_is(long_files: dict[str, Path]) -> None:
    with pytest.raises(VideoError, match=r"long\.mp4: holds 8 frames at 8 fps from 9 s on, 17 were asked for"):
        read_video(long_files["mp4"], start=9.0, num_frames=17, fps=8.0)
    with pytest.raises(VideoError, match=r"lasts 10 s, so nothing begins at 12 s"):
        read_video(long_files["mp4"], start=12.0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": -1.0},
        {"start": float("nan")},
        {"start": float("inf")},
        {"duration": 0.0},
        {"num_frames": 0},
        {"num_frames": 2, "duration": 1.0},
        {"fps": 0.0},
        {"fps": float("inf")},
        {"size": (0, 8)},
        {"crop": "top"},
    ],
)
def test_impossible_arguments_are_refused_before_the_file_is_opened(arguments: dict[str, Any]) -> None:
    with pytest.raises(ShapeError):
        read_video("there is no such file.mp4", **arguments)
    with pytest.raises(ShapeError):
        iter_video("there is no such file.mp4", **arguments)


def test_files_are_left_while_their_decoder_still_has_something_to_log(tmp_path: Path) -> None:
    """PyAV's logging wants Python's lock in FFmpeg's threads, which closing a file waits for: it must not hold it."""
    path = tmp_path / "noise.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
    write_video(path, Video(frames=noise, fps=8.0))
    program = (
        "import sys, av\n"
        "from tokvid.video import probe_video, read_video\n"
        "av.logging.set_level(av.logging.DEBUG)\n"
        "for _ in range(30):\n"
        "    probe_video(sys.argv[1])\n"
        "    read_video(sys.argv[1], start=1.0, num_frames=2)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("fps", [0.001, 0.5, 1000.0])
def test_a_slow_and_a_fast_video_keep_their_rate(tmp_path: Path, suffix: str, fps: float) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_video(path, Video(frames=smooth(4, 16, 16), fps=fps))
    back = read_video(path)
    assert back.num_frames == 4 and back.fps == pytest.approx(fps)


@pytest.mark.parametrize("fps", [1e-9, 9e-4, 1001.0, 1e5, 3e9, 1e300])
def test_a_rate_that_a_file_cannot_hold_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ShapeError, match=r"between 0.001 and 1000 frames a second, got"):
        write_video(tmp_path / "clip.mkv", Video(frames=smooth(2, 16, 16), fps=fps))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), 8.0),
        (np.zeros((4, 4, 3), np.uint8), 8.0),
        (np.zeros((0, 4, 4, 3), np.uint8), 8.0),
        (np.zeros((1, 4, 4, 4), np.uint8), 8.0),
        (np.zeros((1, 4, 4, 3), np.uint8), 0.0),
        (np.zeros((1, 4, 4, 3), np.uint8), float("nan")),
    ],
)
def test_a_video_is_validated(frames: Any, fps: float) -> None:
    with pytest.raises(ShapeError):
        Video(frames=frames, fps=fps)


def test_writing_refuses_what_it_cannot(tmp_path: Path) -> None:
    video = Video(frames=smooth(1, 16, 16), fps=8.0)
    with pytest.raises(VideoError, match=r"clip\.gif: cannot write '\.gif'"):
        write_video(tmp_path / "clip.gif", video)
    with pytest.raises(ShapeError, match="crf"):
        write_video(tmp_path / "clip.mp4", video, crf=52)
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match=r"clip\.mp4: could not be written"):
        write_video(tmp_path / "file" / "clip.mp4", video)
