"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937): a latent becomes the nearest row of a codebook.

The codebook follows the latents as a moving average (their appendix A) or by gradient. It starts as the k-means
centres of the first batch, and rows that nothing chooses any more are moved onto latents of the batch (Jukebox,
Dhariwal et al. 2020). The lookup may run in fewer dimensions and on the sphere (ViT-VQGAN, Yu et al. 2021, arXiv
2110.04627). The arithmetic is that of vector-quantize-pytorch, which tests hold it against, without its tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokvid.across_processes import of_all_processes, sum_over_processes
from tokvid.config_checks import at_least, finite, is_average, is_share
from tokvid.errors import ConfigError
from tokvid_tokenizers.quantizers.base import Quantizer, QuantizerOutput, straight_through, to_latents, to_vectors
from tokvid_tokenizers.quantizers.nearest import nearest

_EPSILON = 1e-5
"""Laplace smoothing of the counts, as in vector-quantize-pytorch."""


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """``dim``: channels of the latents. ``codebook_dim``: those of the lookup, projected to and from; None: ``dim``.

    ``cosine`` looks up on the unit sphere. ``update``: "ema" moves the codebook by averages with ``decay``, "gradient"
    by the optimizer. ``commitment`` weighs the pull of the latents to their codes. ``kmeans_iterations`` 0 starts from
    random rows. A row whose average use falls below ``restart_below`` of the mean use is restarted; 0 never does.
    """

    kind: Literal["vq"] = "vq"
    codebook_size: int = 1024
    dim: int = 8
    codebook_dim: int | None = None
    cosine: bool = False
    update: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    commitment: float = 0.25
    kmeans_iterations: int = 10
    restart_below: float = 0.03

    def __post_init__(self) -> None:
        at_least(self, 2, "codebook_size")
        at_least(self, 1, "dim")
        at_least(self, 0, "commitment", "kmeans_iterations")
        finite(self, "commitment")
        is_average(self, "decay")
        is_share(self, "restart_below")
        if self.codebook_dim is not None and self.codebook_dim < 1:
            raise ConfigError(f"codebook_dim must be at least 1, got {self.codebook_dim}; leave it out for dim")


class VectorQuantizer(Quantizer):
    """VQ with one codebook. Its averages are weights of the model: they are saved and resumed with it."""

    codebook: Tensor
    use: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_size = config.codebook_size
        self.num_codebooks = 1
        width = config.codebook_dim or config.dim
        self.project_in = nn.Linear(config.dim, width) if width != config.dim else nn.Identity()
        self.project_out = nn.Linear(width, config.dim) if width != config.dim else nn.Identity()
        rows = self._placed(torch.randn(config.codebook_size, width) * width**-0.5)
        if config.update == "gradient":
            self.codebook = nn.Parameter(rows)
        else:
            self.register_buffer("codebook", rows)
        self.register_buffer("use", torch.ones(config.codebook_size))
        self.register_buffer("sums", rows.clone())
        self.register_buffer("started", torch.tensor(config.kmeans_iterations == 0))

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Look latents ``[B,D,t,h,w]`` up; in training also move the codebook."""
        vectors = self._placed(self.project_in(to_vectors(latents)))
        stats: dict[str, Tensor] = {}
        if self.training and not self.started:
            self._start(vectors.detach())
        rows = self._rows()
        codes = nearest(vectors, rows)
        chosen = F.embedding(codes, rows)
        loss = self.config.commitment * F.mse_loss(vectors, chosen.detach())
        if self.config.update == "gradient":
            loss = loss + F.mse_loss(chosen, vectors.detach())
        quantized = self.project_out(straight_through(vectors, chosen))
        if self.training:
            stats["restarted"] = self._follow(vectors.detach(), codes)
        return QuantizerOutput(
            quantized=to_latents(quantized, latents),
            codes=to_latents(codes[:, None], latents),
            loss=loss,
            stats=stats,
        )

    def unrounded(self, latents: Tensor) -> Tensor:
        """Latents through both projections, and on the sphere where the codes are."""
        return to_latents(self.project_out(self._placed(self.project_in(to_vectors(latents)))), latents)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents ``[B,D,t,h,w]`` of codes ``[B,1,t,h,w]``."""
        self.check_codes(codes)
        chosen = F.embedding(to_vectors(codes)[:, 0], self._rows())
        return to_latents(self.project_out(chosen), codes)

    def codebook_vectors(self, codebook: int = 0) -> Tensor:
        """The codebook as the decoder sees it, float32 ``[codebook_size, D]``."""
        self.check_codebook(codebook)
        vectors: Tensor = self.project_out(self._rows())
        return vectors.float()

    def _placed(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self.config.cosine else vectors

    def _rows(self) -> Tensor:
        # By gradient a row leaves the sphere, and so does the average of a row over steps, which a run may save.
        return self._placed(self.codebook)

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        """Make the k-means centres of ``vectors`` ``[N,d]`` the codebook."""
        rows = sample(of_all_processes(vectors), self.codebook_size)
        for _ in range(self.config.kmeans_iterations):
            counts, sums = self._gather(vectors, nearest(vectors, rows))
            filled = counts > 0
            rows[filled] = self._placed(sums[filled] / counts[filled, None])
        counts, _ = self._gather(vectors, nearest(vectors, rows))
        self.codebook.copy_(rows)
        self.use.copy_(counts)
        self.sums.copy_(rows * counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Move the averages to what this batch chose; how many rows were restarted, a scalar."""
        counts, sums = self._gather(vectors, codes)
        self.use.lerp_(counts, 1 - self.config.decay)
        if self.config.update == "ema":
            self.sums.lerp_(sums, 1 - self.config.decay)
            total = self.use.sum()
            smooth = (self.use + _EPSILON) / (total + self.codebook_size * _EPSILON) * total
            self.codebook.copy_(self._placed(self.sums / smooth[:, None]))
        mean = self.use.mean()
        dead = self.use < self.config.restart_below * mean
        if dead.any():
            fresh = sample(of_all_processes(vectors), self.codebook_size)
            self.codebook[dead] = fresh[dead]
            self.use[dead] = mean
            self.sums[dead] = fresh[dead] * mean
        return dead.sum()

    def _gather(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """How often each row was chosen ``[C]``, and the sum of the vectors that chose it ``[C,d]``."""
        counts = vectors.new_zeros(self.codebook_size).index_add_(0, codes, vectors.new_ones(len(codes)))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        return sum_over_processes(counts), sum_over_processes(sums)


def sample(vectors: Tensor, count: int) -> Tensor:
    """``count`` of ``vectors`` ``[N,d]`` in random order; again from the start where N is less."""
    order = [torch.randperm(len(vectors), device=vectors.device) for _ in range(-(-count // len(vectors)))]
    return vectors[torch.cat(order)[:count]]
