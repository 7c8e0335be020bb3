"""The memory of a stream does not grow with the video, of any kind of codec: measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.peak_memory import PEAK_KIB
from tokvid.video import Video, write_video

ROOT = Path(__file__).resolve().parents[2]
# What a process holds at its peak, in MB, while a video goes through both streams piece by piece.
IN_MEMORY = f"""
import sys, torch
from tests.tokenizers.lively import smallest_codec, ALL_KINDS
torch.set_num_threads(1)
codec, count = smallest_codec(config=ALL_KINDS[sys.argv[1]]), int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
with codec.stream_encoder() as encoder, codec.stream_decoder() as decoder:
    for _ in range(count // 32):
        decoder.push(encoder.push(torch.rand(1, 3, 32, 32, 32, generator=generator) * 2 - 1))
    decoder.push(encoder.finish())
    decoder.finish()
print({PEAK_KIB} / 1024)
"""
ON_DISK = f"""
import sys, torch
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.files import decode_file, encode_file
torch.set_num_threads(1)
codec, folder, name = load_codec("preset:tiny"), sys.argv[1], sys.argv[2]
encode_file(codec, folder + "/" + name + ".mp4", folder + "/" + name + ".tokvid")
decode_file(codec, folder + "/" + name + ".tokvid", folder + "/" + name + "-again.mp4")
print({PEAK_KIB} / 1024)
"""


def peak(script: str, *arguments: object) -> float:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "tokenizers"))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def check_flat(short: float, long: float) -> None:
    """Within 5 %, and, because most of a process is torch, by so few MiB that kept frames would show."""
    assert long < 1.05 * short and long - short < 10, (short, long)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shift", "factorised", "transformer"])
def test_a_stream_of_4096_frames_needs_what_64_need(kind: str) -> None:
    """All frames would be 50 MB."""
    check_flat(peak(IN_MEMORY, kind, 64), peak(IN_MEMORY, kind, 4096))


@pytest.mark.slow
def test_a_file_of_4096_frames_needs_what_64_need(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(256, size=(64, 64, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "short.mp4", Video(frames=tile, fps=24), crf=40)
    write_video(tmp_path / "long.mp4", Video(frames=np.tile(tile, (64, 1, 1, 1)), fps=24), crf=40)
    check_flat(peak(ON_DISK, tmp_path, "short"), peak(ON_DISK, tmp_path, "long"))
