"""The .tokvid file: what is packed comes back, byte for byte as documented, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tokvid.codes_file import CodesFacts, CodesFile, join_codes, pack, unpack, write_codes
from tokvid.errors import CheckpointError, ShapeError

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


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"expected codes \[1,t,3,3\]"):
        pack(draw(FACTS)[:, :, :2], FACTS)
    with pytest.raises(ShapeError, match="codes must lie"):
        pack(draw(FACTS) + 1000, FACTS)
    with pytest.raises(ShapeError, match="num_frames=9"):
        write_codes(tmp_path / "a.tokvid", draw(FACTS, t=4), FACTS)
    assert not list(tmp_path.iterdir())
