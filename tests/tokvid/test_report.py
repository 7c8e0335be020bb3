"""Pictures show what they are given, and a page holds everything it shows."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageSequence

from tokvid.errors import ShapeError
from tokvid.report.page import Card, Figure, Report
from tokvid.report.pictures import (
    GAP,
    LABEL_LINES,
    LABEL_WIDTH,
    animated,
    contact_sheet,
    enlarge,
    side_by_side,
    still,
    strip,
    wrapped,
)
from tokvid.report.plots import Axis, bar_plot, line_plot, usage_plot

SVG = "{http://www.w3.org/2000/svg}"


def clip(frames: int = 5, height: int = 8, width: int = 12, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def opened(uri: str) -> Image.Image:
    media_type, content = uri.removeprefix("data:").split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert Image.MIME[image.format or ""] == media_type
    return image


def test_a_strip_holds_the_frames_in_order() -> None:
    frames = clip(5)
    row = strip(frames)
    assert row.shape == (8, 5 * 12 + 4 * 2, 3)
    for i, frame in enumerate(frames):
        assert np.array_equal(row[:, i * 14 : i * 14 + 12], frame)
    rows = strip(frames, columns=3, scale=2)
    assert rows.shape == (2 * 16 + 2, 3 * 24 + 2 * 2, 3)
    assert np.array_equal(rows[18::2, 26:50:2], frames[4])
    assert (rows[18:, 52:] == 255).all()  # no sixth frame


def test_a_sheet_holds_clips_of_different_sizes_and_labels() -> None:
    clips = [clip(5), clip(3, 16, 16)]
    plain = contact_sheet(clips)
    assert np.array_equal(plain[:8, : 5 * 14 - 2], strip(clips[0]))
    assert np.array_equal(plain[10:26, : 3 * 18 - 2], strip(clips[1]))
    labelled = contact_sheet(clips, ["a red apple", "a cat"])
    assert labelled.shape[0] > plain.shape[0] and (labelled < 128).any()
    with pytest.raises(ShapeError, match="1 for 2"):
        contact_sheet(clips, ["one"])


def test_a_long_label_is_wrapped_and_then_cut() -> None:
    clips = [clip(5, 32, 32)]
    width = strip(clips[0]).shape[1]

    def height_of_label(text: str) -> int:
        sheet = contact_sheet(clips, [text])
        assert sheet.shape[1] == max(width, LABEL_WIDTH)
        return int(sheet.shape[0] - contact_sheet(clips).shape[0] - GAP)

    one = height_of_label("a red apple")
    assert height_of_label("") == one
    heights = [height_of_label(" ".join(["apple"] * count)) for count in (12, 20, 120, 1000)]
    assert one < heights[0] < heights[1] == heights[2] == heights[3] < 4 * one
    assert height_of_label("x" * 3000) == heights[3]
    # What is wrapped is all there; what is cut shows that it is.
    assert wrapped("one two\n three", 1000) == ["one two three"]
    words = " ".join(f"word{number}" for number in range(30))
    lines = wrapped(words, 200)
    assert len(lines) == LABEL_LINES and lines[-1].endswith("…") and words.startswith(" ".join(lines)[:-1].rstrip())
    short = " ".join(f"word{number}" for number in range(8))
    assert " ".join(wrapped(short, 200)) == short
    assert "".join(wrapped("y" * 60, 200)) == "y" * 60


def test_a_wide_sheet_has_wide_labels() -> None:
    wide = clip(17, 32, 64)
    text = " ".join(["apple"] * 20)
    assert contact_sheet([wide], [text]).shape[0] == contact_sheet([wide], ["apple"]).shape[0]


def test_side_by_side_keeps_both_clips() -> None:
    a, b = clip(seed=1), clip(seed=2)
    both = side_by_side(a, b)
    assert both.shape == (5, 8, 26, 3)
    assert np.array_equal(both[:, :, :12], a) and np.array_equal(both[:, :, 14:], b)
    with pytest.raises(ShapeError, match="one length and height"):
        side_by_side(a, b[:3])


@pytest.mark.parametrize(("fps", "length_ms"), [(8.0, 625), (30.0, 167), (24.0, 208)])
def test_an_animation_is_lossless_and_keeps_its_length(fps: float, length_ms: int) -> None:
    frames = clip()
    image = opened(animated(frames, fps, scale=2))
    shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert np.array_equal(np.stack(shown), enlarge(frames, 2))
    durations = []
    for number in range(len(frames)):
        image.seek(number)
        image.load()
        durations.append(image.info["duration"])
    assert sum(durations) == length_ms


def test_small_clips_are_made_visible_and_one_frame_is_enough() -> None:
    assert opened(animated(clip(2, 8, 12))).size == (144, 96)
    assert opened(animated(clip(1, 100, 200))).size == (200, 100)


def test_a_still_is_the_picture() -> None:
    picture = clip(1)[0]
    assert np.array_equal(np.asarray(opened(still(picture))), picture)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_what_is_no_clip_is_refused(wrong: npt.NDArray[np.uint8]) -> None:
    for function in (strip, animated, side_by_side):
        with pytest.raises(ShapeError, match="uint8"):
            function(wrong)


def test_a_line_passes_through_its_points() -> None:
    svg = line_plot({"l<1": [(0, 0.0), (10, 1.0)], "b": [(5, 0.5)]}, "loss & more", ylabel="nats")
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"loss & more", "nats", "step", "l<1", "b", "0.2"} <= set(texts)
    (line,) = root.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    (dot,) = root.iter(f"{SVG}circle")
    assert x0 < x1 and y0 > y1  # up is more
    assert float(dot.attrib["cx"]) == pytest.approx((x0 + x1) / 2, abs=0.1)
    assert float(dot.attrib["cy"]) == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_a_logarithmic_line_is_straight_for_a_power() -> None:
    root = ElementTree.fromstring(line_plot({"a": [(0, 1.0), (1, 10.0), (2, 100.0)]}, "t", log_y=True))
    (line,) = root.iter(f"{SVG}polyline")
    y = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)


def test_long_lines_are_thinned_to_means() -> None:
    points = [(float(i), float(i)) for i in range(10_000)]
    root = ElementTree.fromstring(line_plot({"a": points}, "t"))
    (line,) = root.iter(f"{SVG}polyline")
    assert 200 < len(line.attrib["points"].split()) <= 400


@pytest.mark.parametrize(
    ("points", "log", "words"),
    [([], False, "no points"), ([(0, float("nan"))], False, "not finite"), ([(0, 0.0)], True, "<= 0")],
)
def test_a_plot_of_nothing_is_refused(points: list[tuple[float, float]], log: bool, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        line_plot({"a": points}, "t", log_y=log)


@pytest.mark.parametrize("low_high", [(0.0, 1.0), (-3.0, 4.5), (0.00012, 0.00031), (17.4, 26.0), (0.0, 150_000.0)])
def test_ticks_are_few_round_and_inside(low_high: tuple[float, float]) -> None:
    low, high = low_high
    ticks = Axis(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 9
    assert low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert all(len(f"{tick:g}") <= 8 for tick in ticks)


def test_bars_have_the_height_of_their_values() -> None:
    root = ElementTree.fromstring(bar_plot([1, 2, 0], "t"))
    heights = [float(bar.attrib["height"]) for bar in root.iter(f"{SVG}rect")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2) and heights[2] == 0
    assert "(2 of 4 used)" in usage_plot([0, 3, 1, 0])
    with pytest.raises(ShapeError, match="no codes"):
        usage_plot([0, 0])


class Tags(HTMLParser):
    """Checks that every tag is closed, and gathers addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_holds_everything_it_shows(tmp_path: Path) -> None:
    report = Report("<demo>", "a & b").section("Clips", "text")
    report.figures([Figure(name="PSNR", value="26 dB", goal="≥ 25", reached=True)])
    report.cards([Card(uri=animated(clip()), caption="an <apple>", verdict=False, detail="seen: a pear")])
    report.section("Numbers").plots(line_plot({"l1": [(1, 2.0), (2, 1.0)]}, "loss"))
    report.table(["stage", "frames/s", "good"], [["codec", 1234.5678, True], ["lm", 12, None]], caption="speed")
    report.facts({"seed": 0, "versions": {"torch": "2"}})
    path = report.save(tmp_path / "runs" / "report.html")
    html = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.addresses and all(a.startswith(("data:image/", "#s")) for a in tags.addresses)
    assert not re.search(r"(?:src|href|url|@import)\W{0,3}https?:", html)
    for words in ("&lt;demo&gt;", "an &lt;apple&gt;", "✗ wrong", "✓ reached", "1235", "versions.torch", "@media"):
        assert words in html, words
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
