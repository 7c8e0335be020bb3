"""What tiles of large frames cost and what their seams look like: ``make bench ARGS=tests/benchmarks/bench_tiles.py``.

Memory is that of ``preset:base`` with random weights, which it does not depend on, a process for each figure. The
seams are those of a trained codec on a real video: name them in TOKVID_BENCH_CODEC and TOKVID_BENCH_VIDEO. Nothing is
asserted about either.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.peak_memory import PEAK_KIB
from tokvid.frames import to_model
from tokvid.video import Video, read_video, write_video
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.codec_config import AnyCodecConfig
from tokvid_tokenizers.cost import codec_cost
from tokvid_tokenizers.presets import preset
from tokvid_tokenizers.tiling import Tiling, decoder_reach, decoder_tiling, encoder_reach, encoder_tiling

NUM_FRAMES = 17
SIZES = ((720, 1280), (1080, 1920))
TILES = (None, (512, 512), (256, 256))
SEAM_TILE = (256, 256)
SEAM_HALOS = (0, 1, 2, 3, 4, 6, 8, None)
MEASURE = """
import json, sys, time
from tokvid_tokenizers import load_codec
from tokvid_tokenizers.files import decode_file, encode_file
verb, source, target, tile = sys.argv[1:4] + [json.loads(sys.argv[4])]
codec = load_codec("preset:base")
megabytes = lambda: PEAK / 1024
before, start = megabytes(), time.perf_counter()
{"encode": encode_file, "decode": decode_file}[verb](codec, source, target, tile=tile and tuple(tile))
print(json.dumps([before, megabytes(), time.perf_counter() - start]))
""".replace("PEAK", PEAK_KIB)


def measured(verb: str, source: Path, target: Path, tile: tuple[int, int] | None) -> list[float]:
    """MB of a process that has loaded the codec, at its peak in the end, and seconds."""
    command = [sys.executable, "-c", MEASURE, verb, str(source), str(target), json.dumps(tile)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


@functools.cache
def macs(config: AnyCodecConfig, height: int, width: int) -> tuple[int, int]:
    cost = codec_cost(config, NUM_FRAMES, height, width)
    return cost.encode_macs, cost.decode_macs


def tiled_macs(config: AnyCodecConfig, size: tuple[int, int], encoder: Tiling, decoder: Tiling) -> tuple[int, int]:
    """Multiply-accumulates to encode and to decode a clip of this ``size`` in tiles."""
    stride = config.spatial_stride
    sums = []
    for which, tiling in enumerate((encoder, decoder)):
        shape = [side // stride * tiling.cell_in for side in size]
        tiles = tiling.tiles(torch.empty(1, 1, 1, *shape, device="meta"))
        sides = [[(span.stop - span.start) * stride for span in tile] for tile in tiles]
        sums.append(sum(macs(config, *side)[which] for side in sides))
    return sums[0], sums[1]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_memory_and_arithmetic(size: tuple[int, int], tmp_path: Path) -> None:
    config = preset("base")
    height, width = (side // 8 for side in size)
    coarse = np.random.default_rng(0).integers(256, size=(NUM_FRAMES, height, width, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", Video(frames=coarse.repeat(8, axis=1).repeat(8, axis=2), fps=24))
    print(f"\nfiles of {NUM_FRAMES}x{size[0]}x{size[1]}, preset:base, fp32, {torch.get_num_threads()} threads")
    print(f"{'tile':<9}" + 2 * f"{'verb':>8}{'GMAC':>7}{'peak MB':>9}{'above start':>12}{'seconds':>9}")
    for tile in TILES:
        arithmetic = tiled_macs(config, size, encoder_tiling(config, tile), decoder_tiling(config, tile))
        row = f"{'x'.join(map(str, tile or ['whole'])):<9}"
        for verb, source, target, count in zip(
            ("encode", "decode"), ("clip.mp4", "clip.tokvid"), ("clip.tokvid", "again.mp4"), arithmetic, strict=True
        ):
            before, peak, seconds = measured(verb, tmp_path / source, tmp_path / target, tile)
            row += f"{verb:>8}{count / 1e9:>7.0f}{peak:>9.0f}{peak - before:>12.0f}{seconds:>9.1f}"
        print(row)


def test_arithmetic_of_halos() -> None:
    config, size = preset("base"), (1080, 1920)
    reach = encoder_reach(config), decoder_reach(config)
    print(f"\npreset:base at {size[0]}x{size[1]}, times the GMAC of whole frames; it sees {reach} cells")
    whole = sum(tiled_macs(config, size, encoder_tiling(config, None), decoder_tiling(config, None)))
    halos = (0, 2, 4, 8, None)
    print(f"{'tile':<9}" + "".join(f"{'exact' if halo is None else f'halo {halo}':>9}" for halo in halos))
    for side in (128, 256, 512, 1024):
        tile, row = (side, side), f"{side}x{side}"
        print(f"{row:<9}", end="")
        for halo in halos:
            tilings = encoder_tiling(config, tile, halo), decoder_tiling(config, tile, halo)
            print(f"{sum(tiled_macs(config, size, *tilings)) / whole:>9.2f}", end="")
        print()


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of frames in [-1, 1]."""
    error = float((one - other).square().mean())
    return 10 * math.log10(4 / error) if error else math.inf


def jumps(off: Tensor, tile: tuple[int, int]) -> tuple[float, float]:
    """Levels of 255 by which what is ``off`` [B,3,T,H,W] jumps across seams: the most, and the mean of all seams."""
    rows = (off[..., tile[0] :: tile[0], :] - off[..., tile[0] - 1 : -1 : tile[0], :]).abs()
    columns = (off[..., tile[1] :: tile[1]] - off[..., tile[1] - 1 : -1 : tile[1]]).abs()
    both = torch.cat([rows.flatten(), columns.flatten()]) * 127.5
    return float(both.max()), float(both.mean())


def test_seams() -> None:
    name, video = os.environ.get("TOKVID_BENCH_CODEC"), os.environ.get("TOKVID_BENCH_VIDEO")
    if not name or not video:
        pytest.skip("needs TOKVID_BENCH_CODEC and TOKVID_BENCH_VIDEO")
    codec, clip = load_codec(name), read_video(video, start=120.0, fps=12.0, num_frames=NUM_FRAMES)
    pictures = clip.frames[:, : clip.height // 64 * 64, : clip.width // 64 * 64]
    frames = to_model(pictures)
    size = (frames.shape[3], frames.shape[4])
    tiles = "x".join(map(str, SEAM_TILE))
    print(f"\n{NUM_FRAMES}x{size[0]}x{size[1]} of {Path(video).name} at 120 s and 12 frames a second, tiles of {tiles}")
    print(f"the encoder sees {encoder_reach(codec.config)} cells, the decoder {decoder_reach(codec.config)}")
    head = ("halo", "times GMAC", "codes changed", "to whole dB", "jump max", "jump mean", "both dB", "to video dB")
    print("".join(f"{word:>14}" for word in head))
    with torch.inference_mode():
        codes = codec.encode(frames)
        whole = codec.decode(codes, NUM_FRAMES)
        plain = sum(
            tiled_macs(codec.config, size, encoder_tiling(codec.config, None), decoder_tiling(codec.config, None))
        )
        print(f"{'whole':>14}{1:>14.2f}{0:>14.3%}{'':>56}{decibel(whole, frames):>14.2f}")
        for halo in SEAM_HALOS:
            tilings = encoder_tiling(codec.config, SEAM_TILE, halo), decoder_tiling(codec.config, SEAM_TILE, halo)
            own = codec.encode(frames, tile=SEAM_TILE, halo=halo)
            decoded = codec.decode(codes, NUM_FRAMES, tile=SEAM_TILE, halo=halo)
            both = codec.decode(own, NUM_FRAMES, tile=SEAM_TILE, halo=halo)
            most, mean = jumps(decoded - whole, SEAM_TILE)
            work = sum(tiled_macs(codec.config, size, *tilings)) / plain
            print(
                f"{'exact' if halo is None else halo:>14}{work:>14.2f}{float((own != codes).float().mean()):>14.3%}"
                f"{decibel(decoded, whole):>14.1f}{most:>14.2f}{mean:>14.3f}"
                f"{decibel(both, whole):>14.1f}{decibel(both, frames):>14.2f}"
            )
