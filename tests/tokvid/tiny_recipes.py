"""Sections of recipes that run in a second: 12 clips of 5 frames of 16x16, two steps."""

from __future__ import annotations

DATA = {"kind": "sprites", "size": [16, 16], "num_frames": 5, "train_clips": 12, "held_out_clips": 4}
TRAINING = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "precision": "fp32"}
CODEC = {
    "temporal_stride": 4,
    "patch": 4,
    "channels": [8],
    "encoder_blocks": [1],
    "decoder_blocks": [1],
    "quantizer": {"kind": "fsq", "levels": [4, 4]},
}
MODEL = {
    "kind": "scratch",
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 16,
    "max_positions": 128,
    "text_vocab_size": 300,
}
