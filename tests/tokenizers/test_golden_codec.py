"""The arithmetic of the codec has not changed: the codes and frames that it gave when this file was last written.

After a change that is meant to change them, write ``tests/golden/codec.json`` anew and say why in the commit:

    python -m tests.tokenizers.test_golden_codec
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tokenizers.lively import settled
from tokvid_tokenizers import VideoCodec, load_codec
from tokvid_tokenizers.layers.residual import ResidualBlock

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "codec.json"
# Other processors add in another order: 1e-4 is a hundred times what that changes.
TOLERANCE = 1e-4


def golden_frames() -> Tensor:
    """Two clips ``[2,3,7,32,40]`` by formula: waves that move, of another length in each channel."""
    clip, channel, time, row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (2, 3, 7, 32, 40)), indexing="ij"
    )
    phase = 0.31 * row * (1 + 0.3 * channel) + 0.23 * column + 0.7 * time * (1 + clip) + 1.9 * channel * clip
    return (0.6 * phase.sin() + 0.4 * (0.11 * row * column - 0.5 * time).cos()).float()


def golden_codec() -> VideoCodec:
    """``preset:tiny`` of seed 0, its residual branches filled by formula (they start at zero), and calibrated."""
    codec = load_codec("preset:tiny", seed=0)
    with torch.no_grad():
        for block in (m for m in codec.modules() if isinstance(m, ResidualBlock)):
            count = block.conv_out.weight.numel()
            values = torch.arange(count, dtype=torch.float64).mul(1.7).cos().mul(0.08).float()
            block.conv_out.weight.copy_(values.view_as(block.conv_out.weight))
    codec.calibrate(golden_frames())
    return codec


def results() -> dict[str, Any]:
    """What the golden file holds; ``settled`` marks the codes that rounding errors cannot change."""
    codec, frames = golden_codec(), golden_frames()
    with torch.no_grad():
        latents = codec.encode_latents(frames)
        codes = codec.encode(frames)
        decoded = codec.decode_latents(codec.quantizer.dequantize(codes), num_frames=7)
    return {
        "codes": codes.tolist(),
        "settled": settled(codec, latents, margin=10 * TOLERANCE).long().tolist(),
        "latents": _rounded(latents[:, :, :, ::3, ::3]),
        "decoded": _rounded(decoded[:, :, ::2, ::9, ::9]),
    }


def _rounded(values: Tensor) -> Any:
    return [[round(v, 6) for v in row] for row in values.flatten(0, -2).tolist()]


def test_the_numbers_are_those_of_the_golden_file() -> None:
    golden, now = json.loads(GOLDEN.read_text(encoding="utf-8")), results()
    safe = torch.tensor(golden["settled"]).bool()
    assert safe.float().mean() > 0.9
    codes, codes_now = torch.tensor(golden["codes"]), torch.tensor(now["codes"])
    assert codes_now.shape == codes.shape == (2, 1, 3, 4, 5)
    assert torch.equal(codes_now[safe], codes[safe])
    assert len(codes.unique()) > 40
    torch.testing.assert_close(torch.tensor(now["latents"]), torch.tensor(golden["latents"]), atol=TOLERANCE, rtol=0)
    # Decoded from the codes of the file, so that a code on a boundary does not matter here.
    codec = golden_codec()
    with torch.no_grad():
        decoded = codec.decode_latents(codec.quantizer.dequantize(codes), num_frames=7)
    expected = torch.tensor(golden["decoded"])
    torch.testing.assert_close(torch.tensor(_rounded(decoded[:, :, ::2, ::9, ::9])), expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 0.1


def test_the_golden_file_is_small() -> None:
    assert GOLDEN.stat().st_size < 100_000


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(results()) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN.relative_to(Path.cwd())}: {GOLDEN.stat().st_size} bytes")
