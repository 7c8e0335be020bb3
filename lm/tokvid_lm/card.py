"""The model card of a video language model."""

from __future__ import annotations

from tokvid.hub_card import Card, Run, render
from tokvid_lm.video_lm import VideoLM

_USE = """
from tokvid_lm import TextSegment, VideoLM

lm = VideoLM.from_pretrained("{name}")
(clip,) = lm.generate([TextSegment("a caption")]{size})
"""


_PLAIN = "It is a plain model of transformers, too: `AutoModelForCausalLM.from_pretrained` loads it without tokvid."
_ADAPTERS = """Here are adapters of `{base}` and the rows of its new ids. tokvid loads that model with them; so does
peft, without tokvid:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")
model.resize_token_embeddings({rows})
model = PeftModel.from_pretrained(model, "{name}")
```"""


def lm_card(
    name: str, lm: VideoLM, *, run: Run | None = None, license: str | None = None, base: str | None = None
) -> str:
    """The README of the repository ``name`` (org/name) that holds ``lm``, with what ``run`` measured.

    With ``base`` it holds adapters of the model that is called so on the Hub.
    """
    settings = lm.settings
    facts = {
        "parameters": f"{sum(parameter.numel() for parameter in lm.model.parameters()) / 1e6:.2f} M",
        "architecture": f"{type(lm.model).__name__} of transformers, positions {lm.positions.kind}",
        "ids": f"{lm.vocabulary.total_size:,}, {lm.vocabulary.text_size:,} of them of text",
        "modes": ", ".join(sampling.mode for sampling in settings.sampling) or "next_token",
        "codec": f"`{lm.codec.codec_id}`, in the folder codec",
    }
    if settings.num_frames and settings.height and settings.width:
        rate = f" at {settings.fps:g} frames a second" if settings.fps else ""
        facts["clips"] = f"{settings.num_frames} frames of {settings.height}x{settings.width}{rate}"
    if lm.diffusion_head is not None:
        count = sum(parameter.numel() for parameter in lm.diffusion_head.parameters())
        purpose = "which draws the latents" if lm.is_continuous else "for `generate(..., hybrid=True)`"
        facts["diffusion head"] = f"{count / 1e6:.2f} M parameters, {purpose}"
    known = settings.num_frames and settings.height and settings.width
    limits = ["It draws what is like the clips that it was trained on, of the size named above."]
    if lm.positions.kind != "1d":
        limits.append("Plain transformers does not load it: its positions are not one number a token.")
    card = Card(
        title=name.partition("/")[2] or name,
        summary=f"A language model that draws video as {'latents' if lm.is_continuous else 'tokens'}, by tokvid. "
        + (_PLAIN if base is None else _ADAPTERS.format(name=name, base=base, rows=lm.vocabulary.total_size)),
        facts=facts,
        use=_USE.format(name=name, size="" if known else ", num_frames=17, height=128, width=128"),
        tags=("autoregressive-video", "text-to-video", *(() if base is None else ("peft", "lora"))),
        base=base,
        pipeline="text-to-video",
        license=license,
        run=run,
        limits=limits,
    )
    return render(card)
