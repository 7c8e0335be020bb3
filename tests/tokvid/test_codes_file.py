"""The .tokvid file: what is packed comes back, byte for byte as documented, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tokvid.codes_file import CodesFacts, CodesFile, join_codes, pack, unpack, write_codes
from tokvid.config import to_mapping
from tokvid.errors import CheckpointError, ShapeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"

FACTS = CodesFacts(
    codec_id="tokvid-0123456789abcdef",
    codebook_size=1000,
    num_codebooks=1,
    temporal_stride=4,
    spatial_stride=8,
    num_frames=9,
    height=20,
    width=24,
    fps=12.5,
    made_by={"source": "clip.mp4"},
)


def draw(facts: CodesFacts, t: int = 3, seed: int = 0) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.integers(facts.codebook_size, size=(facts.num_codebooks, t, *facts.cells))


@settings(max_examples=60, deadline=None)
@given(
    codebook_size=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 64000, 2**18, 2**24])),
    num_codebooks=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    t=st.integers(0, 4),
)
def test_what_is_packed_comes_back(codebook_size: int, num_codebooks: int, height: int, width: int, t: int) -> None:
    facts = dataclasses.replace(
        FACTS, codebook_size=codebook_size, num_codebooks=num_codebooks, height=height, width=width
    )
    codes = draw(facts, t)
    rows = pack(codes, facts)
    assert rows.shape == (t, facts.row_bytes)
    assert np.array_equal(unpack(rows, facts), codes)
    cells = facts.cells[0] * facts.cells[1] * num_codebooks
    assert facts.row_bytes < cells * facts.bits / 8 + 1


def test_the_bytes_are_those_of_the_documentation() -> None:
    """3 codes of 3 bits, the lowest bit first: 5 = 101, 1 = 100, 6 = 011 -> 10110001 1 -> 0x8d 0x01."""
    facts = dataclasses.replace(FACTS, codebook_size=7, height=8, width=24)
    assert pack(np.array([5, 1, 6]).reshape(1, 1, 1, 3), facts).tolist() == [[0x8D, 0x01]]


def read_by_the_page(path: Path) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """The facts and codes ``[t,h,w,K]`` of a file, as somebody reads it who has docs/formats.md and not tokvid."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    facts = json.loads(head["__metadata__"]["tokvid"])
    t, row_bytes = head["codes"]["shape"]
    h, w = (math.ceil(facts[side] / facts["spatial_stride"]) for side in ("height", "width"))
    assert t == 1 + math.ceil((facts["num_frames"] - 1) / facts["temporal_stride"])
    count, bits = h * w * facts["num_codebooks"], 1
    while 2**bits < facts["codebook_size"]:
        bits += 1
    assert row_bytes == math.ceil(count * bits / 8) and len(data) == 8 + length + t * row_bytes
    codes = []
    for i in range(t):
        start = 8 + length + i * row_bytes
        row = int.from_bytes(data[start : start + row_bytes], "little")
        codes += [row >> bits * place & 2**bits - 1 for place in range(count)]
        assert row < 2 ** (count * bits)
    return facts, np.array(codes).reshape(t, h, w, facts["num_codebooks"])


@settings(max_examples=40, deadline=None)
@given(
    codebook_size=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 64000, 2**18, 2**40, 2**62])),
    num_codebooks=st.integers(1, 3),
    stride=st.integers(1, 16),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    num_frames=st.integers(1, 9),
)
def test_the_page_of_formats_is_enough_to_read_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    codebook_size: int,
    num_codebooks: int,
    stride: int,
    height: int,
    width: int,
    num_frames: int,
) -> None:
    facts = CodesFacts(
        codec_id="tokvid-0123456789abcdef",
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        temporal_stride=4,
        spatial_stride=stride,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=29.97,
        made_by={"source": "Übung.mp4"},
    )
    codes = draw(facts, t=1 + -(-(num_frames - 1) // 4))
    path = tmp_path_factory.mktemp("page") / "a.tokvid"
    write_codes(path, codes, facts)
    said, found = read_by_the_page(path)
    assert np.array_equal(found.transpose(3, 0, 1, 2), codes)
    assert said == to_mapping(facts)
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", PAGE.read_text(encoding="utf-8"), re.M)))
    assert set(said) <= set(documented)


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    codes = draw(FACTS)
    write_codes(tmp_path / "a.tokvid", codes, FACTS)
    file = CodesFile(tmp_path / "a.tokvid")
    assert file.facts == FACTS and file.latent_frames == 3
    assert np.array_equal(file.read(), codes)
    assert np.array_equal(file.read(1, 2), codes[:, 1:2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokvid"]
    # It is a safetensors file to everybody else.
    assert load_file(tmp_path / "a.tokvid")["codes"].shape == (3, FACTS.row_bytes)


def test_a_file_joined_from_rows_is_the_file_written_at_once(tmp_path: Path) -> None:
    codes = draw(FACTS)
    write_codes(tmp_path / "a.tokvid", codes, FACTS)
    (tmp_path / "body.bin").write_bytes(pack(codes[:, :1], FACTS).tobytes() + pack(codes[:, 1:], FACTS).tobytes())
    join_codes(tmp_path / "b.tokvid", tmp_path / "body.bin", FACTS)
    assert (tmp_path / "a.tokvid").read_bytes() == (tmp_path / "b.tokvid").read_bytes()
    (tmp_path / "body.bin").write_bytes(b"odd")
    with pytest.raises(CheckpointError, match="3 bytes more"):
        join_codes(tmp_path / "b.tokvid", tmp_path / "body.bin", FACTS)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_torn_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.tokvid"
    write_codes(path, draw(FACTS), FACTS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"a\.tokvid is torn"):
        CodesFile(path)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.zeros((3, 12), np.int8), r"rows are I8 \[3, 12\], expected U8 \[t,12\]"),
        (np.zeros((3, 12), np.float32), "rows are F32"),
        (np.zeros((3, 12, 1), np.uint8), r"rows are U8 \[3, 12, 1\]"),
        (np.zeros((), np.uint8), r"rows are U8 \[\]"),
        (np.zeros((0, 12), np.uint8), "0 latent frames"),
    ],
)
def test_a_tensor_that_is_no_codes_is_named(tmp_path: Path, codes: npt.NDArray[np.generic], words: str) -> None:
    save_file({"codes": codes}, tmp_path / "a.tokvid", metadata={"tokvid": json.dumps(to_mapping(FACTS))})
    with pytest.raises(CheckpointError, match=rf"a\.tokvid contradicts itself: .*{words}"):
        CodesFile(tmp_path / "a.tokvid")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ("{", "line 1 column 2"),
        ("[]", "facts are list, expected a mapping"),
        ("null", "facts are NoneType"),
        ("{}", "format 1, got None"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_facts_that_are_none_are_named(tmp_path: Path, facts: str, words: str) -> None:
    save_file({"codes": np.zeros((3, 12), np.uint8)}, tmp_path / "a.tokvid", metadata={"tokvid": facts})
    with pytest.raises(CheckpointError, match=rf"a\.tokvid contradicts itself: .*{words}") as caught:
        CodesFile(tmp_path / "a.tokvid")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        CodesFile(tmp_path / "none.tokvid")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "weights.tokvid")
    with pytest.raises(CheckpointError, match="holds no codes"):
        CodesFile(tmp_path / "weights.tokvid")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format 1, got 2"),
        ({"num_frames": 10}, "9"),
        ({"height": 80}, "rows are"),
        ({"codebook_size": 0}, "at least 1"),
        ({"codebook_size": 2**62 + 1}, r"at most 2\^62"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"fps": float("nan")}, "fps"),
    ],
)
def test_a_file_that_contradicts_itself_is_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "a.tokvid"
    write_codes(path, draw(FACTS), FACTS)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"]["tokvid"] = json.dumps(json.loads(head["__metadata__"]["tokvid"]) | change)
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match=words):
        CodesFile(path)


def test_codes_beyond_the_codebook_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tokvid"
    write_codes(path, draw(FACTS), FACTS)
    data = bytearray(path.read_bytes())
    data[-FACTS.row_bytes :] = b"\xff" * FACTS.row_bytes
    path.write_bytes(data)
    assert CodesFile(path).read(0, 2).max() < 1000
    with pytest.raises(CheckpointError, match="holds code 1023"):
        CodesFile(path).read()


def test_bits_after_the_last_code_are_damage(tmp_path: Path) -> None:
    """A row of 9 codes of 10 bits leaves 6 bits of its 12 bytes."""
    path = tmp_path / "a.tokvid"
    write_codes(path, draw(FACTS), FACTS)
    data = bytearray(path.read_bytes())
    data[-1] |= 0x04
    path.write_bytes(data)
    assert CodesFile(path).read(0, 2).shape == (1, 2, 3, 3)
    with pytest.raises(CheckpointError, match="bits after the last code"):
        CodesFile(path).read()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (2, 1), (0, 4), (3, None)])
def test_latent_frames_that_are_not_there_are_refused(tmp_path: Path, start: int, stop: int | None) -> None:
    write_codes(tmp_path / "a.tokvid", draw(FACTS), FACTS)
    with pytest.raises(ShapeError, match=f"holds latent frames 0 to 3, got {start} to"):
        CodesFile(tmp_path / "a.tokvid").read(start, stop)


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"expected codes \[1,t,3,3\]"):
        pack(draw(FACTS)[:, :, :2], FACTS)
    with pytest.raises(ShapeError, match="codes must lie"):
        pack(draw(FACTS) + 1000, FACTS)
    with pytest.raises(ShapeError, match="integer codes, got float64"):
        pack(draw(FACTS).astype(np.float64), FACTS)
    with pytest.raises(ShapeError, match="num_frames=9"):
        write_codes(tmp_path / "a.tokvid", draw(FACTS, t=4), FACTS)
    assert not list(tmp_path.iterdir())
