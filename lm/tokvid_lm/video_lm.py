"""A language model that reads and writes video: the model, its text tokenizer, its codec, and the plan of its ids.

The folder it is saved in is first of all a plain Hugging Face model. How ids are drawn is the business of
:mod:`tokvid_lm.samplers`, how documents become ids that of :mod:`tokvid_lm.processor`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokvid.atomic import atomic_folder
from tokvid.config import from_mapping, to_mapping
from tokvid.diffusion_head import DiffusionHead
from tokvid.errors import CheckpointError, ConfigError, ModelError, did_you_mean
from tokvid.flow import Refinement
from tokvid.grid import Grid
from tokvid.head_files import load_head, save_head
from tokvid.hub import HubOptions, PushOptions, local_folder, push_folder, refuse_pickles
from tokvid.hub_card import Run
from tokvid.runtime import check_compiles
from tokvid_lm.adapters import Adapters, base_of, load_adapted
from tokvid_lm.candidates import check_judges, only_one
from tokvid_lm.continuous import LatentHead, codebooks_of, is_continuous
from tokvid_lm.document import Document, DocumentWriter
from tokvid_lm.extend import extend
from tokvid_lm.generation import Prompts, Request, as_batch, check_unused, draw_codes, draw_text, split_request
from tokvid_lm.head import plain_head
from tokvid_lm.hybrid import HEAD, check_head, head_of, refined_frames
from tokvid_lm.latent_generation import draw_latent_clips
from tokvid_lm.layout import build_layout
from tokvid_lm.loading import load_causal_lm, load_saved_tokenizer, mark_model_type
from tokvid_lm.positions import PositionKind, PositionScheme
from tokvid_lm.processor import VideoProcessor, codec_device
from tokvid_lm.rollout import Rollout, stream_frames
from tokvid_lm.samplers.runner import Way
from tokvid_lm.samplers.sampling import Sampling
from tokvid_lm.segments import Segment, TextSegment, VideoSegment
from tokvid_lm.templates import build_template
from tokvid_lm.video_lm_folder import (
    CODEC_FOLDER,
    FORMAT_VERSION,
    PROCESSOR,
    PROCESSOR_FILE,
    VIDEO_FILE,
    check_nothing_is_lost,
    read_facts,
    saved_codec,
    saved_vocabulary,
)
from tokvid_lm.video_settings import VideoSettings
from tokvid_lm.vocabulary import MODES, VideoVocabulary
from tokvid_tokenizers import VideoCodec, load_codec

OUTPUTS = ("text", "video")


class VideoLM:
    """``model`` and ``tokenizer`` are plain Hugging Face objects; ``codec`` turns frames into codes and back."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: VideoVocabulary,
        codec: VideoCodec,
        *,
        template: str = "rows",
        layout: str = "raster",
        positions: PositionKind = "1d",
        settings: VideoSettings | None = None,
    ) -> None:
        """``settings`` are what :meth:`generate` goes by unless told otherwise, and what was trained; they are
        saved."""
        codebook_size, num_codebooks = codebooks_of(codec)
        if (codebook_size, num_codebooks) != (vocabulary.codebook_size, vocabulary.num_codebooks):
            raise ModelError(
                f"the vocabulary holds {vocabulary.num_codebooks} codebooks of {vocabulary.codebook_size},"
                f" the codec {num_codebooks} of {codebook_size}"
            )
        rows = model.get_input_embeddings().num_embeddings
        if rows != vocabulary.total_size:
            raise ModelError(f"the model has {rows} ids, the vocabulary {vocabulary.total_size}: extend the model")
        _check_tokenizer(tokenizer, vocabulary)
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.codec = codec
        self.settings = VideoSettings() if settings is None else settings
        self.template = build_template(template, vocabulary)
        self.layout = build_layout(layout)
        self.positions = PositionScheme(kind=positions, strides=(codec.temporal_stride, codec.spatial_stride))
        self.positions.install(model)
        self.processor = VideoProcessor(tokenizer, codec, vocabulary, self.template, self.layout)
        self.diffusion_head: DiffusionHead | None = None
        """What :meth:`generate` refines frames with when ``hybrid`` is asked for; ``refinement`` says how. Of a
        continuous model the :class:`~tokvid_lm.continuous.LatentHead` that all its videos are drawn with."""
        self.refinement = Refinement()

    @cached_property
    def head(self) -> nn.Linear | None:
        """The output head, where it alone makes the logits."""
        return plain_head(self.model)

    @property
    def is_continuous(self) -> bool:
        """Whether its videos are latents and not codes."""
        return is_continuous(self.codec)

    @property
    def latent_head(self) -> LatentHead | None:
        """What a continuous model draws its videos with, once it has that."""
        return self.diffusion_head if isinstance(self.diffusion_head, LatentHead) else None

    @property
    def pad_id(self) -> int:
        """What fills rows; no model looks at it."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in ids if token is not None), 0))

    @classmethod
    def extend(
        cls,
        model: PreTrainedModel | str | Path,
        *,
        codec: VideoCodec | str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str = "rows",
        layout: str = "raster",
        positions: PositionKind = "1d",
        factors: tuple[int, ...] = (),
        num_actions: int = 0,
        chat: bool = False,
        seed: int = 0,
    ) -> VideoLM:
        """Give a causal language model the codes of ``codec`` as new ids; see :func:`tokvid_lm.extend.extend`.

        ``template``, ``layout`` and ``positions`` say how videos stand in a sequence.
        """
        if isinstance(codec, str | Path):
            codec = load_codec(codec)
        extended = extend(
            model, codec, tokenizer=tokenizer, factors=factors, num_actions=num_actions, chat=chat, seed=seed
        )
        return cls(
            extended.model,
            extended.tokenizer,
            extended.vocabulary,
            codec,
            template=template,
            layout=layout,
            positions=positions,
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: torch.dtype | None = None, **hub: Unpack[HubOptions]
    ) -> VideoLM:
        """Load what :meth:`save_pretrained` wrote, in ``dtype`` or in the one it was saved in.

        ``name`` is a folder, or ``org/name`` of a model on the Hugging Face Hub, which alone has a ``revision``; see
        :class:`~tokvid.hub.HubOptions`. Adapters are merged into the model that they name, which is loaded, too.
        """
        folder = local_folder(name, **hub)
        facts = read_facts(folder)
        refuse_pickles(folder)
        vocabulary, codec = saved_vocabulary(folder, facts), saved_codec(folder, facts)
        try:
            settings = from_mapping(VideoSettings, facts["settings"], where="settings")
        except ConfigError as error:
            raise CheckpointError(f"{folder / VIDEO_FILE}: {error}") from error
        tokenizer = load_saved_tokenizer(folder)
        base = base_of(folder)
        if base is None:
            model = load_causal_lm(folder, dtype=dtype, exact=True, positions=facts["positions"])
        else:
            model = load_adapted(folder, base, rows=vocabulary.total_size, dtype=dtype)
        lm = cls(
            model.eval(),
            tokenizer,
            vocabulary,
            codec,
            template=facts["template"],
            layout=facts["layout"],
            positions=facts["positions"],
            settings=settings,
        )
        found = load_head(
            folder, HEAD, what="diffusion head", kind=LatentHead if lm.is_continuous else DiffusionHead, how=Refinement
        )
        if found is not None:
            lm.diffusion_head, lm.refinement, _ = found
            check_head(lm, lm.diffusion_head)
        elif lm.is_continuous:
            raise CheckpointError(f"{folder} lacks {HEAD}.json, and a continuous model draws with it: save it again")
        return lm

    def save_pretrained(self, folder: str | Path, *, adapters: Adapters | None = None) -> None:
        """Write the model, the text tokenizer, the codec, ``video_lm.json`` and a diffusion head, all or nothing.

        With ``adapters`` they are written in place of the model. An earlier ``VideoLM`` in ``folder`` is replaced;
        anything else there raises :class:`CheckpointError`.
        """
        folder = Path(folder)
        if self.is_continuous and self.latent_head is None:
            raise ModelError("this continuous model has no diffusion head yet, and is none without: train it first")
        if folder.exists() and not (folder / VIDEO_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} exists and holds no VideoLM; choose another folder or empty this one")
        facts = {
            "format_version": FORMAT_VERSION,
            "template": self.template.kind,
            "layout": self.layout.kind,
            "positions": self.positions.kind,
            "codec_id": self.codec.codec_id,
            "vocabulary": self.vocabulary.to_mapping(),
            # Not in generation_config.json: transformers would guide and cut text with what is meant for codes.
            "settings": to_mapping(self.settings),
        }
        with atomic_folder(folder) as beside:
            if adapters is None:
                self.model.save_pretrained(beside)
                mark_model_type(beside, self.positions.kind)
            else:
                adapters.save(beside)
            self.tokenizer.save_pretrained(beside)
            self.codec.save_pretrained(beside / CODEC_FOLDER)
            if self.diffusion_head is not None:
                save_head(beside, HEAD, self.diffusion_head, self.refinement)
            (beside / VIDEO_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (beside / PROCESSOR_FILE).write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")
            check_nothing_is_lost(folder, beside)

    def push_to_hub(
        self, name: str, *, run: Run | None = None, license: str | None = None, **hub: Unpack[PushOptions]
    ) -> str:
        """Put all that :meth:`save_pretrained` writes on the Hugging Face Hub as ``org/name``; the commit's address.

        Its card says what ``run`` measured (:func:`tokvid.hub_card.read_run`), without one that nothing was evaluated.
        See :func:`tokvid.hub.push_folder`.
        """
        from tokvid_lm.card import lm_card

        card = lm_card(name, self, run=run, license=license)
        return push_folder(self.save_pretrained, name, card=card, **hub)

    def to(self, device: str | torch.device) -> VideoLM:
        """Move model, codec and diffusion head, and return self."""
        self.model.to(device)  # type: ignore[arg-type,unused-ignore]
        self.codec.to(device)
        if self.diffusion_head is not None:
            self.diffusion_head.to(device)
        return self

    def generate(
        self,
        prompts: Prompts,
        *,
        output: str = "video",
        mode: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        actions: Tensor | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        choice_temperature: float | None = None,
        candidates: int | None = None,
        num_return_sequences: int = 1,
        seed: int = 0,
        max_new_tokens: int = 128,
        batch_size: int = 64,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        hybrid: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[VideoSegment] | list[TextSegment]:
        """Answer each prompt (a list of segments, or a list of such lists) ``num_return_sequences`` times.

        For video: ``num_frames``, ``height`` and ``width`` in pixels, multiples of the codec's stride; the answers
        hold codes ``[1,K,t,h,w]`` (of a continuous model none) and frames ``[1,3,T,H,W]``, on the CPU, in the order of
        the prompts. A prompt whose last segment is a video with unknown cells asks for that video, whose size is then
        known. ``actions`` int64 ``[T-1]`` are for a model that was trained on actions. For text: at most
        ``max_new_tokens`` ids.

        ``mode`` is one of :data:`~tokvid_lm.vocabulary.MODES` that the model was trained in, by default the first.
        What is None of ``guidance_scale``, ``temperature``, ``top_k``, ``top_p``, ``steps``, ``choice_temperature``,
        ``candidates`` and ``fps`` is taken from :attr:`settings` for video, and plain sampling for text; a ``top_k`` of
        0 and a ``top_p`` of 1 keep all ids. Each answer to a prompt of text alone is the best of so many ``candidates``
        (:mod:`tokvid_lm.candidates`), which are drawn side by side. At most ``batch_size`` rows run together (twice as
        many with guidance); a sample is the same in any batch. ``autocast`` computes in that type (bfloat16, say).
        ``compiled`` draws codes with steps that went through torch.compile: some 20 seconds for the first clip of each
        mode, number of rows and stretch of 64 ids that its prompt ends in, and then less for every step; after the
        eighth of these torch compiles no more. With ``hybrid`` the diffusion head puts back into the frames what the
        codes round off; the codes are the same. ``progress(done, total)`` follows the clips whose codes are drawn, all
        candidates among them. Raises :class:`ModelError` for what the model cannot do, and for settings that are not
        used in what was asked for, :class:`ConfigError` without a compiler.
        """
        if output not in OUTPUTS:
            raise ModelError(f"unknown output {output!r}: {did_you_mean(output, OUTPUTS)}")
        if num_return_sequences < 1 or batch_size < 1 or max_new_tokens < 1:
            raise ModelError(
                "num_return_sequences, batch_size and max_new_tokens must be at least 1, got"
                f" {num_return_sequences}, {batch_size}, {max_new_tokens}"
            )
        sampling = (self.sampling_for(mode) if output == "video" else Sampling()).override(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            steps=steps,
            choice_temperature=choice_temperature,
            candidates=candidates,
            seed=seed,
        )
        several = None if candidates == 1 else candidates  # one is what everything draws
        batch, way = as_batch(prompts), Way(autocast=autocast, compiled=compiled)
        if output == "text":
            of_video: dict[str, object] = {
                "mode": mode,
                "candidates": several,
                "num_frames": num_frames,
                "height": height,
                "width": width,
                "fps": fps,
            }
            of_video |= {"actions": actions, "compiled": compiled or None, "hybrid": hybrid or None}
            of_video |= {"progress": progress}
            check_unused(of_video, "to generate text")
            return draw_text(
                self,
                batch,
                sampling,
                copies=num_return_sequences,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                way=way,
            )
        if self.is_continuous:
            unused: dict[str, object] = {"top_k": top_k, "top_p": top_p, "choice_temperature": choice_temperature}
            unused |= {
                "candidates": several,
                "actions": actions,
                "hybrid": hybrid or None,
                "compiled": compiled or None,
            }
            check_unused(unused, "by a continuous model")
        if hybrid:
            head_of(self)  # before codes are drawn
        requests = [split_request(segments, self) for segments in batch]
        if sampling.candidates > 1:
            check_judges(self, [request.segments for request in requests] if several is not None else [])
        if actions is not None:
            requests = [replace(each, given=replace(each.given, actions=actions)) for each in requests]
        grid, num_frames = self.size_of(requests, num_frames, height, width)
        if compiled:
            check_compiles(self.model.device, "leave compiled out")
        fps = self.settings.fps if fps is None else fps
        if self.is_continuous:
            return draw_latent_clips(
                self,
                [request for request in requests for _ in range(num_return_sequences)],
                sampling,
                grid,
                num_frames,
                fps=fps,
                batch_size=batch_size,
                way=way,
                progress=progress,
            )
        codes = draw_codes(
            self,
            requests,
            sampling,
            grid,
            num_frames,
            fps=fps,
            copies=num_return_sequences,
            batch_size=batch_size,
            way=way,
            progress=progress,
        )
        rows = [request for request in requests for _ in range(num_return_sequences)]
        if hybrid:
            shown = refined_frames(
                self, rows, codes, num_frames, mode=sampling.mode, fps=fps, seed=seed, batch_size=batch_size, way=way
            )
        else:
            shown = self._decode(codes, num_frames, batch_size)
        return [
            VideoSegment(
                codes=codes[row : row + 1],
                frames=frames,
                num_frames=num_frames,
                fps=fps,
                caption=rows[row].caption,
            )
            for row, frames in enumerate(shown)
        ]

    def stream(
        self,
        prompt: Sequence[Segment],
        *,
        mode: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        rollout: Rollout | None = None,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        **sampling: Any,
    ) -> Iterator[Tensor]:
        """Frames ``[1,3,T',H,W]`` of one video as they are done, a block of the codec's stream (``codec.stream_block``
        latent frames) at a time; joined they are ``num_frames``.

        The arguments are those of :meth:`generate`, ``sampling`` what it takes of guidance, temperature and steps.
        With a ``rollout`` the video may be longer than the model's context; at most a chunk of it is held. It then
        has noise of its own in every chunk; without one it is the video that :meth:`generate` draws as the only
        candidate.
        """
        if self.is_continuous:
            raise ModelError("a continuous model gives whole videos: use generate")
        settings = only_one(self.sampling_for(mode), seed=seed, **sampling)
        requests = [split_request(prompt, self)]
        grid, num_frames = self.size_of(requests, num_frames, height, width)
        left = num_frames
        for frames in stream_frames(
            self,
            requests,
            settings,
            grid,
            fps=self.settings.fps if fps is None else fps,
            rollout=rollout,
            way=Way(autocast=autocast),
        ):
            yield frames[:, :, :left]
            left -= frames.shape[2]

    def sampling_for(self, mode: str | None) -> Sampling:
        """How clips are drawn in ``mode``, by default the first that was trained."""
        known = {sampling.mode: sampling for sampling in self.settings.sampling}
        if not known:
            raise ModelError(
                "this model was not trained to draw videos: its training.mixture had text and captions alone"
            )
        if mode is None:
            return self.settings.sampling[0]
        if mode in known:
            return known[mode]
        if mode not in MODES:
            raise ModelError(f"unknown mode {mode!r}: {did_you_mean(mode, MODES)}")
        raise ModelError(f"this model was not trained to draw in the mode {mode!r}, only in {', '.join(known)}")

    def document(self, segments: Sequence[Segment]) -> Document:
        """A prompt as a document that goes on."""
        writer = DocumentWriter(self.template, self.layout)
        self.processor.write(writer, segments)
        return writer.finish()

    def check_guidance(self) -> None:
        """Raise :class:`ModelError` where no prompt without a caption was trained, which guidance compares with."""
        if not self.settings.knows_null_prompt:
            raise ModelError(
                "this model was trained without prompt_drop, so there is nothing to guide away from: use"
                " guidance_scale 1.0"
            )

    def size_of(
        self, requests: Sequence[Request], num_frames: int | None, height: int | None, width: int | None
    ) -> tuple[Grid, int]:
        """The grid and the number of frames of the videos to draw: as said, those of what is given, or as trained."""
        given = [request.given.codes for request in requests if request.given.codes is not None]
        if (num_frames is None or height is None or width is None) and given:
            t, h, w = given[0].shape[2:]
            stride, patch = self.codec.temporal_stride, self.codec.spatial_stride
            said = [request.given.num_frames for request in requests if request.given.num_frames is not None]
            whole = said[0] if said else 1 + (t - 1) * stride
            num_frames = whole if num_frames is None else num_frames
            height, width = h * patch if height is None else height, w * patch if width is None else width
        num_frames = self.settings.num_frames if num_frames is None else num_frames
        height = self.settings.height if height is None else height
        width = self.settings.width if width is None else width
        if num_frames is None or height is None or width is None:
            raise ModelError(
                f"generating video needs num_frames, height and width, got {num_frames}, {height}, {width}"
            )
        return self.codec.grid_for(num_frames, height, width), num_frames

    def _decode(self, codes: Tensor, num_frames: int, batch_size: int) -> list[Tensor]:
        frames: list[Tensor] = []
        device = codec_device(self.codec)
        with torch.inference_mode():
            for part in codes.split(batch_size):
                frames.extend(self.codec.decode(part.to(device), num_frames=num_frames).cpu().split(1))
        return frames


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: VideoVocabulary) -> None:
    known = tokenizer.get_vocab()
    for name, token in vocabulary.special.items():
        if known.get(name) != token:
            raise ModelError(f"the text tokenizer has id {known.get(name)} for {name}, the vocabulary {token}")
    beyond = [name for name, token in known.items() if token >= vocabulary.code_offset]
    if beyond:
        raise ModelError(f"the text tokenizer's {beyond[0]!r} has id {known[beyond[0]]}, which is the id of a code")
