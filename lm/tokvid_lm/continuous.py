"""Video without codes: a language model that reads and draws a codec's latents themselves (MAR, Li et al. 2024, arXiv
2406.11838; NOVA, Deng et al. 2024, arXiv 2412.14169).

Of its vocabulary one id stands for whatever latent is in a cell. Where it stands, the latent is added to its embedding;
where ``<|mask|>`` stands, a diffusion head draws the latent from the hidden state. All else is as with codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokvid.config import to_mapping
from tokvid.diffusion_head import FROM_AND_TO_LATENTS, DiffusionHead, DiffusionHeadConfig, HeadConfig
from tokvid_lm.head import hidden_size
from tokvid_tokenizers import VideoCodec

ADAM_NAMES = ("latent_embed", *FROM_AND_TO_LATENTS)
"""Parts of the names of what Muon leaves to Adam."""


def codebooks_of(codec: VideoCodec) -> tuple[int, int]:
    """Values of a code and codes of a cell, as a vocabulary has them; one of one for a continuous codec."""
    return max(1, codec.codebook_size), max(1, codec.num_codebooks)


def is_continuous(codec: VideoCodec) -> bool:
    """Whether ``codec`` has latents alone."""
    return not codec.num_codebooks


class LatentHead(DiffusionHead):
    """Draws latents from hidden states, and says what the model reads where a latent stands."""

    def __init__(self, config: DiffusionHeadConfig) -> None:
        super().__init__(config)
        self.latent_embed = nn.Linear(config.latent_dim, config.condition_dim)

    def read(self, embeddings: Tensor, latents: Tensor, is_latent: Tensor) -> Tensor:
        """``embeddings`` ``[...,H]`` with ``latents`` ``[...,C]`` added where ``is_latent``, bool ``[...]``."""
        added: Tensor = self.latent_embed(self.standardise(latents).to(self.latent_embed.weight.dtype))
        return embeddings + torch.where(is_latent[..., None], added, 0.0).to(embeddings.dtype)


def new_latent_head(
    model: PreTrainedModel, config: HeadConfig, mean: Sequence[float], deviation: Sequence[float], *, seed: int
) -> LatentHead:
    """A head for latents of that ``mean`` and ``deviation`` a channel, which are read in the size of embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LatentHead(
            DiffusionHeadConfig(
                condition_dim=hidden_size(model),
                mean=tuple(mean),
                deviation=tuple(deviation),
                **to_mapping(config),
            )
        )
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding), "it has been extended"
        size = embedding.weight.detach().float().std()
        nn.init.normal_(head.latent_embed.weight, std=float(size) / len(mean) ** 0.5)
        nn.init.zeros_(head.latent_embed.bias)
    return head
