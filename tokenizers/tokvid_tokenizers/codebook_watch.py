"""How a codebook is used while a codec trains, and a word when it collapses; nobody looks at a log that looks well."""

from __future__ import annotations

import torch
from torch import Tensor

from tokvid.across_processes import sum_over_processes
from tokvid.metrics.codebook_usage import CodebookUsage
from tokvid_tokenizers.codec import VideoCodec
from tokvid_tokenizers.quantizers import (
    FSQConfig,
    GroupedConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
)

_CODES_AN_ENTRY = 20
"""So many codes a codebook entry must have been seen before unused entries say anything."""
_COLLAPSED = 0.05
"""Of the entries that could have been seen: fewer in use is a collapse."""


class CodebookWatch:
    """Counts the codes of training between two lines of its log."""

    def __init__(self, config: QuantizerConfig, codec: VideoCodec) -> None:
        self._config = config
        self._size, self._books = codec.codebook_size, codec.num_codebooks
        self._usage = CodebookUsage(self._size, self._books)
        self._warned = False

    def update(self, codes: Tensor) -> None:
        """Count the codes ``[B,K,t,h,w]`` of one step."""
        self._usage.update(codes)
        self._device = codes.device

    def line(self) -> tuple[dict[str, float], str | None]:
        """The figures of all processes since the last line, and what to say: a collapse once, until it is over."""
        counts = sum_over_processes(torch.from_numpy(self._usage.counts).to(self._device))
        self._usage.counts = counts.cpu().numpy()
        books, stats = self._usage.per_codebook(), self._usage.stats()
        self._usage = CodebookUsage(self._size, self._books)
        # The worst codebook counts: of several one may collapse.
        worst = min(books, key=lambda book: book.usage)
        used = self._size - worst.dead
        expected = min(self._size, worst.num_codes / _CODES_AN_ENTRY)
        collapsed = used <= max(1.0, _COLLAPSED * expected)
        announce = collapsed and not self._warned
        self._warned = collapsed
        figures = {"usage": stats.usage, "perplexity": stats.perplexity, "dead": float(stats.dead)}
        if not announce:
            return figures, None
        return figures, (
            f"the codebook has collapsed: {used} of {self._size} codes in use (perplexity {worst.perplexity:.1f});"
            f" {_advice(self._config)}"
        )


def _advice(config: QuantizerConfig) -> str:
    match config:
        case ResidualConfig() | GroupedConfig():
            return _advice(config.quantizer)
        case VQConfig():
            return (
                "raise restart_below, use kmeans_iterations, a smaller codebook_dim with cosine, or kind: simvq or fsq"
            )
        case SimVQConfig():
            return "lower commitment or the learning rate, or use kind: fsq"
        case FSQConfig():
            return "lower the learning rate: the latents have left every level but the outermost"
        case _:
            return "raise entropy or diversity, lower inverse_temperature or the learning rate, or use kind: fsq"
