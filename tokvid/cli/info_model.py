"""The facts of models for ``tokvid info``: of codecs by building them, of video language models by reading files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokvid.errors import CheckpointError, ConfigError
from tokvid.saved_json import read_mapping

_HEAD = "diffusion_head"  # what tokvid_lm.hybrid calls its files, and no verb without torch may import that
# What config.json of nearly every causal language model calls its dimensions; absent ones are left out.
DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def parse_size(text: str) -> tuple[int, int, int]:
    """Frames, height and width of ``17x128x128``."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip().lower())
    if match is None:
        raise ConfigError(f"--size is written TxHxW (frames, height, width; 17x128x128, say), got {text!r}")
    num_frames, height, width = map(int, match.groups())
    return num_frames, height, width


def describe_codec(name: str, size: str, *, measured: bool = False) -> dict[str, Any]:
    """Facts of ``preset:NAME`` or of a codec's folder, whose weights are read, so that a damaged one is found.

    With ``measured`` also the seconds and the memory that a clip of ``size`` takes here, in a process of its own.
    """
    facts = _described(name, size)
    if measured:
        from tokvid_tokenizers.measured_cost import measure_cost

        facts["measured"] = asdict(measure_cost(name, *parse_size(size)))
    return facts


def _described(name: str, size: str) -> dict[str, Any]:
    from tokvid_tokenizers import load_codec
    from tokvid_tokenizers.presets import preset

    if name.startswith("preset:"):
        config = preset(name.removeprefix("preset:"))
        return {"codec": name, **_cost(config, size)}
    codec = load_codec(name)
    return {"codec": name, "codec_id": codec.codec_id, **_cost(codec.config, size)}


def _cost(config: Any, size: str) -> dict[str, Any]:
    from tokvid.config import to_mapping
    from tokvid_tokenizers.cost import codec_cost
    from tokvid_tokenizers.quantizers import build_quantizer

    cost, quantizer = codec_cost(config, *parse_size(size)), build_quantizer(config.quantizer)
    return {
        "kind": config.kind,
        "parameters": cost.parameters,
        "encoder_parameters": cost.encoder_parameters,
        "decoder_parameters": cost.decoder_parameters,
        "temporal_stride": config.temporal_stride,
        "spatial_stride": config.spatial_stride,
        "quantizer": to_mapping(config.quantizer),
        "codebook_size": quantizer.codebook_size,
        "num_codebooks": quantizer.num_codebooks,
        "size": size,
        "grid": str(cost.grid),
        "codes": cost.num_codes,
        "gmac": {
            "encode": cost.encode_macs / 1e9,
            "decode": cost.decode_macs / 1e9,
            "total": cost.macs / 1e9,
        },
    }


def describe_video_lm(folder: Path, size: str, *, measured: bool = False) -> dict[str, Any]:
    """Facts of a saved video language model, read from its files alone: no model is built, no transformers needed.

    With ``measured`` its codec is built, for what :func:`describe_codec` measures.
    """
    facts, config = (read_mapping(folder / name, "VideoLM") for name in ("video_lm.json", "config.json"))
    try:
        vocabulary = facts["vocabulary"]
        offset, codes = vocabulary["code_offset"], vocabulary["codebook_size"] * vocabulary["num_codebooks"]
        ids = {
            "text": vocabulary["text_size"],
            "special": len(vocabulary["special"]),
            "codes": codes,
            "code_offset": offset,
            "codebook_size": vocabulary["codebook_size"],
            "num_codebooks": vocabulary["num_codebooks"],
            "total": offset + codes,
        }
        described: dict[str, Any] = {
            "video_language_model": str(folder),
            "model_type": config.get("model_type"),
            "architecture": (config.get("architectures") or [None])[0],
            "parameters": _parameters([file for file in folder.glob("*.safetensors") if file.stem != _HEAD]),
            "dimensions": {name: config[name] for name in DIMENSIONS if name in config},
            "vocabulary": ids,
            "template": facts["template"],
            "layout": facts["layout"],
            "positions": facts["positions"],
            "modes": [sampling["mode"] for sampling in facts["settings"]["sampling"]],
            "settings": facts["settings"],
            "codec_id": facts["codec_id"],
        }
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'video_lm.json'} is not what this tokvid writes ({error!r} is missing or of another type):"
            " save the model again, or update tokvid"
        ) from error
    if (folder / f"{_HEAD}.json").is_file():
        head = read_mapping(folder / f"{_HEAD}.json", "diffusion head")
        count = _parameters([folder / f"{_HEAD}.safetensors"])
        described[_HEAD] = {"parameters": count, "refinement": head.get("refinement")}
    if (folder / "codec").is_dir():
        described["its_codec"] = describe_codec(str(folder / "codec"), size, measured=measured)
        found = described["its_codec"]["codec_id"]
        if found != facts["codec_id"]:
            raise CheckpointError(
                f"{folder / 'codec'} holds {found}, but the model speaks {facts['codec_id']}: put the right codec there"
            )
    return described


def _parameters(files: Sequence[Path]) -> int | None:
    """Stored parameters, from the headers of the safetensors ``files``; None where the weights lie in others."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in sorted(files):
        try:
            with safe_open(file, framework="np") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is torn or no safetensors file ({error}); save the model again") from error
    return count if files else None
