"""Folders of pictures as clips of one frame: upright, fitted, and whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokvid.data.picture_clips import PictureClips
from tokvid.errors import DataError, VideoError
from tokvid.video import Video, probe_video, read_video, write_video


def gradient(height: int = 60, width: int = 80) -> Image.Image:
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 3, y * 4, x + y], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg", "d.webp"])
def test_each_format_covers_the_size_and_is_cut_at_its_centre(tmp_path: Path, name: str) -> None:
    gradient().save(tmp_path / name, quality=95)
    clips = PictureClips(str(tmp_path), (24, 24))
    assert (len(clips), clips.num_frames, clips.size, clips.clip_name(0)) == (1, 1, (24, 24), name)
    clip = clips.load(0)
    assert clip.frames.shape == (1, 24, 24, 3) and clip.frames.dtype == np.uint8 and clip.name == name
    # Of 80 columns the middle 60 are seen: red from 30 to 210; of green all.
    middle = clip.frames[0].astype(int)
    assert abs(middle[:, 0, 0].mean() - 34) < 8 and abs(middle[:, -1, 0].mean() - 206) < 8
    assert abs(middle[0, :, 1].mean() - 4) < 8 and abs(middle[-1, :, 1].mean() - 232) < 8


def test_a_picture_is_fitted_as_a_video_of_it_is(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", Video(frames=np.asarray(gradient())[None], fps=8.0), crf=0)
    picture = PictureClips(str(tmp_path), (16, 32)).load(0).frames
    video = read_video(tmp_path / "a.mp4", num_frames=1, size=(16, 32)).frames
    assert np.abs(picture.astype(int) - video.astype(int)).mean() < 4


def test_exif_turns_a_picture_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the stored picture is to be turned by 90 degrees clockwise
    gradient().rotate(90, expand=True).save(tmp_path / "a.jpg", quality=95, exif=turned)
    gradient().save(tmp_path / "b.jpg", quality=95)
    clips = PictureClips(str(tmp_path), (30, 40))
    assert np.abs(clips.load(0).frames.astype(int) - clips.load(1).frames.astype(int)).mean() < 3


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    large = gradient().resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    large.save(tmp_path / "b.png")
    clips = PictureClips(str(tmp_path), (24, 24))
    assert np.abs(clips.load(0).frames.astype(int) - clips.load(1).frames.astype(int)).mean() < 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    """FFmpeg would give the rest of a JPEG in grey."""
    grain = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(grain).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(VideoError, match=rf"{name}: cannot be read as a picture .*; remove it"):
        PictureClips(str(tmp_path), (24, 24)).load(0)


def test_grey_palettes_and_transparency_become_rgb_and_16_bits_are_refused(tmp_path: Path) -> None:
    gradient().convert("L").save(tmp_path / "1.png")
    gradient().convert("P").save(tmp_path / "2.png")
    gradient().convert("RGBA").save(tmp_path / "3.png")
    gradient().convert("CMYK").save(tmp_path / "4.jpg")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "5.png")
    clips = PictureClips(str(tmp_path), (24, 24))
    assert [clips.load(index).frames.shape for index in range(4)] == [(1, 24, 24, 3)] * 4
    with pytest.raises(VideoError, match=r"5\.png: has pixels of mode I;16"):
        clips.load(4)
    with pytest.raises(IndexError):
        clips.load(5)


def test_folders_are_searched_in_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("b/x.png", "a/y.png", "z.png", ".hidden/q.png", "b/.q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        gradient().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    clips = PictureClips(str(tmp_path), (24, 24))
    assert [clips.clip_name(index) for index in range(len(clips))] == ["a/y.png", "b/x.png", "z.png"]


def test_the_digest_follows_names_and_sizes_of_files(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    digests = [PictureClips(str(tmp_path), (24, 24)).digest(), PictureClips(str(tmp_path), (24, 32)).digest()]
    assert digests[0] == PictureClips(str(tmp_path), (24, 24)).digest()
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    digests.append(PictureClips(str(tmp_path), (24, 24)).digest())
    gradient(50).save(tmp_path / "b.png")
    digests.append(PictureClips(str(tmp_path), (24, 24)).digest())
    assert len(set(digests)) == 4


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        PictureClips(str(tmp_path), (24, 24))
    with pytest.raises(DataError, match="no such folder"):
        PictureClips(str(tmp_path / "none"), (24, 24))


def test_side_data_that_pyav_cannot_name_is_one_line(tmp_path: Path) -> None:
    """FFmpeg hands the EXIF of a JPEG over as a kind that some PyAV cannot name; where it can, the file is read."""
    turned = Image.Exif()
    turned[0x0112] = 6
    gradient().save(tmp_path / "a.jpg", exif=turned)
    try:
        probe_video(tmp_path / "a.jpg")
    except VideoError as error:
        assert "side data unknown to PyAV" in str(error)
