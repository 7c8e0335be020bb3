"""The base preset against diffusers and magvit2-pytorch, encoding and decoding one clip: needs the extra ``bench``.

Random weights (speed and memory do not depend on them), fp32, each in a process of its own, one after the other, in
several rounds. Nothing is asserted about speed. VidTok takes minutes a round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peak_memory import PEAK_KIB

ROUNDS = 3
SIZE = (17, 128, 128)
MEASURE = """
import json, time, torch
{setup}
frames = torch.rand(1, 3, {t}, {h}, {w}) * 2 - 1
model = model.eval()
parameters = sum(p.numel() for p in model.parameters()) / 1e6
with torch.inference_mode():
    start = time.perf_counter(); codes = encode(frames); middle = time.perf_counter(); decoded = decode(codes)
end = time.perf_counter()
assert decoded.shape == frames.shape, decoded.shape
print(json.dumps([parameters, middle - start, end - middle, {peak} / 1024]))
"""
OURS = """
from tokvid_tokenizers import load_codec
model = load_codec("preset:base")
encode, decode = model.encode, model.decode
"""
COSMOS = """
from diffusers import AutoencoderKLCosmos
model = AutoencoderKLCosmos(spatial_compression_ratio=8, temporal_compression_ratio=4)
encode, decode = lambda x: model.encode(x).latent_dist.mode(), lambda z: model.decode(z).sample
"""
VIDTOK = """
from diffusers import AutoencoderVidTok
model = AutoencoderVidTok(z_channels=6, double_z=False, regularizer="fsq", codebook_size=262144)
# Its causal model wants the first frame as a whole group, and gives it back as one frame.
encode = lambda x: model.encode(torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2))[0]
decode = model.decode
"""
MAGVIT2 = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from contenders import Magvit2
model = Magvit2(64).codec
encode, decode = model.tokenize, model.decode_from_code_indices
"""
MODELS = {
    "tokvid preset:base": OURS,
    "diffusers Cosmos 4x8x8 (KL)": COSMOS,
    "magvit2-pytorch 4x8x8 FSQ": MAGVIT2,
    "diffusers VidTok FSQ 4x8x8": VIDTOK,
}


def measure(setup: str) -> list[float]:
    """Million parameters, seconds to encode, seconds to decode, MB at the peak of the process."""
    t, h, w = SIZE
    code = MEASURE.format(setup=setup, t=t, h=h, w=w, peak=PEAK_KIB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def test_against_peers() -> None:
    for package in ("diffusers", "magvit2_pytorch"):
        pytest.importorskip(package, reason="needs the extra bench")
    rounds = [{name: measure(setup) for name, setup in MODELS.items()} for _ in range(ROUNDS)]
    print(f"\none clip of {'x'.join(map(str, SIZE))}, fp32, first run of a process, median of {ROUNDS} rounds")
    print(f"{'codec':<30}{'M params':>9}{'encode s':>10}{'decode s':>10}{'times ours':>12}{'peak MB':>9}")
    middle = {name: [statistics.median(r[name][i] for r in rounds) for i in range(4)] for name in MODELS}
    ours = sum(next(iter(middle.values()))[1:3])
    for name, (parameters, encode, decode, megabytes) in middle.items():
        ratio = (encode + decode) / ours
        print(f"{name:<30}{parameters:>9.1f}{encode:>10.2f}{decode:>10.2f}{ratio:>12.1f}{megabytes:>9.0f}")
        assert min(encode, decode) > 0
