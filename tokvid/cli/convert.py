"""Make a codec of tokvid of the file that another project has trained, once; everything else reads what it wrote.

tokvid convert vidtok:vidtok_fsq_causal_488_32768_v1_1.ckpt runs/vidtok
tokvid reconstruct clip.mp4 clip-again.mp4 --codec runs/vidtok

The file is read by a reader that makes tensors and plain values alone: nothing in it is run.
"""

from __future__ import annotations

import argparse

from tokvid.errors import ModelError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``KIND:FILE FOLDER [--version X]``."""
    parser.add_argument("source", metavar="KIND:FILE", help="vidtok: and a .ckpt of VidTok's training")
    parser.add_argument("folder", metavar="FOLDER", help="to write config.json and model.safetensors in")
    parser.add_argument(
        "--version", choices=("1.0", "1.1"), help="of VidTok (default: what a released file's name says)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was left out."""
    from tokvid_tokenizers.published.vidtok_weights import convert_vidtok

    kind, _, file = arguments.source.partition(":")
    if kind != "vidtok" or not file:
        raise ModelError(f"tokvid converts vidtok:FILE, got {arguments.source!r}")
    codec, left_out = convert_vidtok(file, version=arguments.version)
    codec.save_pretrained(arguments.folder)
    size = sum(parameter.numel() for parameter in codec.parameters())
    print(f"{arguments.folder}: {codec.codec_id}, {size / 1e6:.1f} M parameters")
    print(f"left out: {left_out} tensors of the training's losses and averages")
    return 0
