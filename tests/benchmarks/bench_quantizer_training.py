"""Every quantizer in the codec of the demo, trained on the same sprite clips for the same steps: do they collapse?

Each cell has about ten bits, whatever the quantizer; the residual and grouped ones have two codes of five.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from tokvid.cli.clips import load_splits
from tokvid.config import from_mapping
from tokvid.recipe import load_recipe
from tokvid_tokenizers.training import train_codec
from tokvid_tokenizers.training_config import CodecRecipe

STEPS = 800
VQ = {"kind": "vq", "codebook_size": 1024, "dim": 8}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "FSQ 8x5x5x5": {"kind": "fsq", "levels": [8, 5, 5, 5]},
    "VQ (averages)": VQ,
    "VQ (gradient)": {**VQ, "update": "gradient"},
    "VQ (cosine)": {**VQ, "cosine": True},
    "SimVQ": {"kind": "simvq", "codebook_size": 1024, "dim": 8},
    "LFQ": {"kind": "lfq", "codebook_size": 1024},
    "BSQ": {"kind": "bsq", "codebook_size": 1024},
    "residual VQ, 2x32": {
        "kind": "residual",
        "depth": 2,
        "quantizer": {"kind": "vq", "codebook_size": 32, "dim": 8},
    },
    "residual FSQ, 2x36": {"kind": "residual", "depth": 2, "quantizer": {"kind": "fsq", "levels": [4, 3, 3]}},
    "residual LFQ, 2x32": {"kind": "residual", "depth": 2, "quantizer": {"kind": "lfq", "codebook_size": 32}},
    "grouped VQ, 2x32": {"kind": "grouped", "groups": 2, "quantizer": {"kind": "vq", "codebook_size": 32, "dim": 4}},
    "continuous (KL, 8 channels)": {"kind": "kl", "dim": 8},
}


def test_quantizers_train(tmp_path: Path) -> None:
    sizes = ["data.train_clips=6400", "data.held_out_clips=256", f"training.steps={STEPS}"]
    mapping = load_recipe("codec/sprites-tiny", sizes)
    recipe = from_mapping(CodecRecipe, mapping)
    clips = load_splits(recipe.data)
    print(f"\n{STEPS} steps of {recipe.training.batch_size} sprite clips of 17x32x32; 256 held-out clips")
    print(f"{'quantizer':<30}{'PSNR dB':>9}{'usage':>8}{'perplexity':>12}{'minutes':>9}")
    for name, quantizer in QUANTIZERS.items():
        codec = from_mapping(CodecRecipe, {**mapping, "codec": {**mapping["codec"], "quantizer": quantizer}}).codec
        start = time.perf_counter()
        run = dataclasses.replace(recipe, codec=codec, output=str(tmp_path / str(len(list(tmp_path.iterdir())))))
        result = train_codec(run, *clips).evaluation
        minutes = (time.perf_counter() - start) / 60
        usage = "" if result.codebook_usage is None else f"{result.codebook_usage:.1%}"
        perplexity = "" if result.perplexity is None else f"{result.perplexity:.0f}"
        print(f"{name:<30}{result.psnr:>9.2f}{usage:>8}{perplexity:>12}{minutes:>9.1f}", flush=True)
        assert result.psnr > 15
