"""What was done in a video, from a file beside it: whose it is, which clip it goes to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tokvid.test_clips import T, config, video
from tokvid.data.clip import Clip
from tokvid.data.clip_source import ClipSource
from tokvid.data.clips import FolderClips, SpriteDataConfig, open_clips
from tokvid.data.folder_scan import scan_folder
from tokvid.errors import DataError


def write(path: Path, actions: object) -> None:
    path.write_text(json.dumps(actions), encoding="utf-8")


def clips_of(source: ClipSource) -> list[Clip]:
    return [clip for clip in source.load_all() if isinstance(clip, Clip)]


def test_each_window_gets_the_actions_between_its_own_frames(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", num_frames=3 * T + 1)
    video(tmp_path / "b.mp4", num_frames=T)
    write(tmp_path / "a.actions.json", list(range(3 * T)))
    source = FolderClips(config(tmp_path), None)
    clips = clips_of(source)
    assert [(clip.name, clip.actions) for clip in clips] == [
        ("a.mp4#0000", (0, 1, 2)),
        ("a.mp4#0001", (4, 5, 6)),
        ("a.mp4#0002", (8, 9, 10)),
        ("b.mp4", ()),
    ]
    assert [source.load(index).actions for index in range(len(source))] == [clip.actions for clip in clips]


def test_they_count_at_the_rate_that_clips_are_read_at(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", num_frames=2 * T, fps=8)
    write(tmp_path / "a.actions.json", list(range(T - 1)))
    assert clips_of(FolderClips(config(tmp_path, fps=4.0), None))[0].actions == (0, 1, 2)
    with pytest.raises(DataError, match=r"a\.actions\.json: holds 3 actions, but a\.mp4 has 8 frames at 8 fps.*7 from"):
        FolderClips(config(tmp_path), None)


def test_a_digest_of_words_follows_captions_and_actions(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")

    def digests() -> tuple[str, str]:
        source = FolderClips(config(tmp_path), None)
        return source.digest(), source.digest(words=True)

    found = [digests()]
    (tmp_path / "a.txt").write_text("a caption")
    found.append(digests())
    write(tmp_path / "a.actions.json", [1, 2, 3])
    found.append(digests())
    assert len({pictures for pictures, _ in found}) == 1 and len({words for _, words in found}) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"a\.actions\.json: is not JSON"),
        ("[" * 100_000, r"a\.actions\.json: is not JSON"),
        ('{"a": 1}', "JSON list of whole numbers, got dict"),
        ("[0, 1.0, 2]", "action 1 must be a whole number from 0"),
        ("[0, true, 2]", "action 1"),
        ("[0, -1, 2]", "action 1 .*got '-1'"),
        ("[0, 2147483648, 2]", "action 1"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_what_is_no_list_of_actions_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "a.actions.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        scan_folder(tmp_path)


def test_actions_without_a_video_are_named(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    write(tmp_path / "b.actions.json", [])
    with pytest.raises(DataError, match=r"1 files of actions have no video beside them: b\.actions\.json"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "sprites"])
def test_a_range_is_a_piece_of_the_whole(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        for name, num_frames in (("a.mp4", 3 * T), ("b.mp4", 2 * T)):
            video(tmp_path / name, num_frames=num_frames)
        source: ClipSource = FolderClips(config(tmp_path), None)
    else:
        source = open_clips(SpriteDataConfig(train_clips=5), "train")
    whole = clips_of(source)
    for first, last in ((0, 5), (1, 4), (2, 2), (4, 5)):
        part = [clip for clip in source.load_range(first, last, workers=1) if isinstance(clip, Clip)]
        assert [clip.name for clip in part] == [clip.name for clip in whole[first:last]]
        assert all((a.frames == b.frames).all() for a, b in zip(part, whole[first:last], strict=True))
    with pytest.raises(IndexError, match="holds 5 clips"):
        list(source.load_range(3, 6))
