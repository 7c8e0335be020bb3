"""The memory of a stream does not grow with the video: measured in processes of their own."""

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
from tokvid_tokenizers import load_codec
torch.set_num_threads(1)
codec, count = load_codec("preset:tiny"), int(sys.argv[1])
generator = torch.Generator().manual_seed(0)
with codec.stream_encoder() as encoder, codec.stream_decoder() as decoder:
    for _ in range(count // 32):
        decoder.push(encoder.push(torch.rand(1, 3, 32, 64, 64, generator=generator) * 2 - 1))
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


@pytest.mark.slow
def test_a_stream_of_4096_frames_needs_what_64_need() -> None:
    short, long = peak(IN_MEMORY, 64), peak(IN_MEMORY, 4096)
    # All frames would be 200 MB.
    assert long < 1.05 * short, (short, long)


@pytest.mark.slow
def test_a_file_of_2048_frames_needs_what_64_need(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(256, size=(64, 64, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "short.mp4", Video(frames=tile, fps=24), crf=40)
    write_video(tmp_path / "long.mp4", Video(frames=np.tile(tile, (32, 1, 1, 1)), fps=24), crf=40)
    short, long = peak(ON_DISK, tmp_path, "short"), peak(ON_DISK, tmp_path, "long")
    assert long < 1.05 * short, (short, long)
