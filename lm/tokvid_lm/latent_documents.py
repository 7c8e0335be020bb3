"""Captioned clips as documents of latents: those of codes, and beside them the latent of every cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokvid_lm.code_clips import LatentClips
from tokvid_lm.code_source import CodeSource
from tokvid_lm.document import Document
from tokvid_lm.documents import Documents
from tokvid_lm.processor import VideoProcessor


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentDocument(Document):
    """``latents`` float32 ``[n,C]``: those of the cells that ids stand for, of masked ones too; elsewhere 0."""

    latents: npt.NDArray[np.float32]


class LatentDocuments(Documents):
    """As :class:`~tokvid_lm.documents.Documents`, of clips whose codes stand for latents."""

    clips: LatentClips

    def __init__(self, processor: VideoProcessor, clips: LatentClips, **arguments: Any) -> None:
        super().__init__(processor, clips, **arguments)

    def document(self, sample: int, latent_frames: int | None = None) -> LatentDocument:
        """What ``sample`` shows."""
        written = super().document(sample, latent_frames)
        whole = self.clips.latents[self.clip_of(sample)].numpy()
        latents = np.zeros((len(written), len(whole)), np.float32)
        latents[written.content] = whole[:, *written.cell[written.content].T].T
        return LatentDocument(**vars(written), latents=latents)


def open_documents(processor: VideoProcessor, clips: CodeSource, **arguments: Any) -> Documents:
    """The documents of clips as codes, or as latents."""
    if isinstance(clips, LatentClips):
        return LatentDocuments(processor, clips, **arguments)
    return Documents(processor, clips, **arguments)
