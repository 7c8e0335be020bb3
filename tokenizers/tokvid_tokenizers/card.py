"""The model card of a codec."""

from __future__ import annotations

from tokvid.hub_card import Card, Run, render
from tokvid_tokenizers.codec import VideoCodec

_USE = """
from tokvid_tokenizers import load_codec

codec = load_codec("{name}")
codes = codec.encode(frames)                     # frames [B,3,T,H,W] in [-1, 1]
frames = codec.decode(codes, num_frames=frames.shape[2])
"""


def codec_card(name: str, codec: VideoCodec, *, run: Run | None = None, license: str | None = None) -> str:
    """The README of the repository ``name`` (org/name) that holds ``codec``, with what ``run`` measured."""
    discrete = bool(codec.num_codebooks)
    size = sum(parameter.numel() for parameter in codec.parameters())
    facts = {
        "parameters": f"{size / 1e6:.2f} M",
        "kind": codec.config.kind,
        "strides": f"{codec.temporal_stride} frames, {codec.spatial_stride} pixels"
        + ("; the first frame stands alone" if codec.is_causal else ""),
        "quantizer": codec.config.quantizer.kind,
    }
    if discrete:
        facts["codebooks"] = f"{codec.num_codebooks} of {codec.codebook_size:,} codes"
        facts["digest"] = f"`{codec.codec_id}`, which language models and .tokvid files name"
    card = Card(
        title=name.partition("/")[2] or name,
        summary=f"A {'causal ' if codec.is_causal else ''}video codec for tokvid: it turns clips of any length into "
        + ("integers and back." if discrete else "few continuous latents and back."),
        facts=facts,
        use=_USE.format(name=name),
        tags=("video-codec", "video-tokenizer"),
        license=license,
        run=run,
        limits=("It codes what is like the clips that it was trained on, and blurs the rest.",),
    )
    return render(card)
