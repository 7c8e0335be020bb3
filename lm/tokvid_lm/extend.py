"""Give any Hugging Face causal language model the ids of a codec's codes, without touching what it knows.

The rows of the embedding (and of an untied head) that text uses stay as they are, bit for bit. New rows start
from the codec's codebook, so that codes that look alike start alike; see :class:`NewRows`.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from tokvid.errors import ModelError
from tokvid_lm.chat_template import set_up_chat
from tokvid_lm.continuous import codebooks_of, is_continuous
from tokvid_lm.loading import load_causal_lm, load_tokenizer
from tokvid_lm.vocabulary import VideoVocabulary, special_tokens
from tokvid_tokenizers import VideoCodec

CHUNK = 1 << 16
"""Rows made at a time, so that a large codebook needs no second copy of the embedding."""


@dataclass(frozen=True, kw_only=True)
class Extended:
    """A model and a text tokenizer that know the ids of ``vocabulary``."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: VideoVocabulary


def extend(
    model_or_name: PreTrainedModel | str | Path,
    codec: VideoCodec,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    factors: tuple[int, ...] = (),
    num_actions: int = 0,
    chat: bool = False,
    seed: int = 0,
) -> Extended:
    """Extend a model (changed in place, its parameters keep their dtype and device) or a name or folder.

    ``tokenizer`` (copied, not changed) is needed with a model and may be left out with a name. ``factors`` split
    codes into digits, ``num_actions`` special tokens are for actions: see :class:`VideoVocabulary`. With ``chat`` there
    are special tokens for turns, and the text tokenizer's chat template is ours. New rows depend on ``seed`` alone.
    Raises :class:`ModelError`, before anything is changed, for a model that cannot be extended.
    """
    if isinstance(model_or_name, PreTrainedModel):
        model = model_or_name
        if tokenizer is None:
            raise ModelError("extending a model object needs its text tokenizer too: extend(model, tokenizer=...)")
    else:
        model = load_causal_lm(model_or_name)
        if tokenizer is None:
            tokenizer = load_tokenizer(model_or_name)
    embedding, head = _check_extensible(model)
    codebook_size, num_codebooks = codebooks_of(codec)
    vectors = [_codebook_vectors(codec, codebook) for codebook in range(num_codebooks)]
    old_rows = embedding.weight.shape[0]
    tokenizer, text_size = copy.deepcopy(tokenizer), text_tokenizer_size(tokenizer)
    vocabulary = VideoVocabulary(
        text_size=text_size,
        special=add_special_tokens(tokenizer, text_size, special_tokens(num_actions, chat=chat)),
        code_offset=max(old_rows, text_tokenizer_size(tokenizer)),
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        factors=factors,
    )
    vectors = [part for whole in vectors for part in factor_vectors(whole, factors)]
    tied = head.weight is embedding.weight
    with torch.random.fork_rng(devices=[]):  # Hugging Face draws rows that are overwritten below.
        model.resize_token_embeddings(vocabulary.total_size, mean_resizing=False)
    _check_resized(model, vocabulary)
    embedding, head = _tables(model)
    _fill(embedding.weight, vocabulary, vectors, old_rows, seed=seed)
    if not tied:
        _fill(head.weight, vocabulary, vectors, old_rows, seed=seed + 1)
    if head.bias is not None:
        _fill_bias(head.bias, vocabulary, old_rows)
    if chat:
        set_up_chat(model, tokenizer, vocabulary)
    return Extended(model=model, tokenizer=tokenizer, vocabulary=vocabulary)


def text_tokenizer_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id of a text tokenizer; ``len()`` would be too small for one with holes."""
    return max(tokenizer.get_vocab().values()) + 1


class NewRows:
    """Rows that stand among the text rows as one of them would: same mean, same deviation, per dimension.

    A codebook's vectors are standardised, projected by a fixed random matrix, and scaled. Raw rows are meant: a
    model that multiplies its embeddings (Gemma) does so with ours too.
    """

    def __init__(self, text_rows: Tensor) -> None:
        rows = text_rows.detach().float()
        self.mean = rows.mean(0)
        self.deviation = rows.std(0, correction=0)

    def codes(self, vectors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``(standardised vectors [N,D], projection [D,hidden], mean [hidden])``: rows are the affine product."""
        deviation = vectors.std(0, correction=0)
        standardised = torch.where(deviation > 0, (vectors - vectors.mean(0)) / deviation, 0.0)
        projection = torch.randn(vectors.shape[1], len(self.mean), generator=generator)
        covariance = standardised.T @ standardised / len(vectors)
        spread = ((covariance @ projection) * projection).sum(0).clamp_min(0).sqrt()
        scale = self.deviation.cpu() / spread.clamp_min(1e-12)
        return standardised, projection * scale, self.mean.cpu()

    def specials(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent rows, float32 ``[count, hidden]``."""
        noise = torch.randn(count, len(self.mean), generator=generator)
        return self.mean.cpu() + noise * self.deviation.cpu()


@torch.no_grad()
def _fill(weight: Tensor, vocabulary: VideoVocabulary, vectors: list[Tensor], old_rows: int, *, seed: int) -> None:
    """Write the new rows of an embedding or a head, ``[total_size, hidden]``; ``vectors`` has an entry a slot."""
    new_rows = NewRows(weight[: min(vocabulary.text_size, old_rows)])
    generator = torch.Generator().manual_seed(seed)
    ids = sorted(vocabulary.special.values())
    # Rows of text ids beyond the old embedding: Hugging Face drew them from the global generator.
    ids += range(old_rows, vocabulary.text_size)
    weight[ids] = new_rows.specials(len(ids), generator).to(weight)
    for slot in range(vocabulary.slots):
        standardised, projection, mean = new_rows.codes(vectors[slot], generator)
        start = vocabulary.slot_range(slot).start
        for begin in range(0, len(standardised), CHUNK):
            rows = standardised[begin : begin + CHUNK] @ projection + mean
            weight[start + begin : start + begin + len(rows)] = rows.to(weight)


@torch.no_grad()
def _fill_bias(bias: Tensor, vocabulary: VideoVocabulary, old_rows: int) -> None:
    # The mean of the text's: new ids are then neither favoured nor shunned at the start.
    mean = bias[: min(vocabulary.text_size, old_rows)].mean()
    bias[sorted(vocabulary.special.values())] = mean
    bias[old_rows:] = mean


def factor_vectors(vectors: Tensor, factors: tuple[int, ...]) -> list[Tensor]:
    """What stands for the digits of codes ``[N,D]``: of each value of a digit the mean of all codes that have it."""
    if not factors:
        return [vectors]
    table = vectors.unflatten(0, factors)
    others = [[axis for axis in range(len(factors)) if axis != kept] for kept in range(len(factors))]
    return [table.mean(dim=axes) if axes else table for axes in others]


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, text_size: int, names: tuple[str, ...]) -> dict[str, int]:
    """Add ``names`` to a text tokenizer of ``text_size`` ids; the id of each. :class:`ModelError` for one it has."""
    known = tokenizer.get_vocab()
    clash = [name for name in names if name in known]
    if clash:
        raise ModelError(
            f"the text tokenizer already has {', '.join(clash)}; extend the original model, or load an extended"
            " one with VideoLM.from_pretrained"
        )
    added = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(added, special_tokens=True)
    known = tokenizer.get_vocab()
    ids = [int(known[name]) for name in names]
    if min(ids) < text_size:
        raise ModelError(f"the text tokenizer gave a special token id {min(ids)}, below its own {text_size} ids")
    return dict(zip(names, ids, strict=True))


def _tables(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """The embedding and the output head of a model."""
    name = type(model).__name__
    embedding: object = None
    head: object = None
    with suppress(NotImplementedError, AttributeError):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"{name} has no embedding that can be resized (it has {type(embedding).__name__})")
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{name} has no linear output head that can be resized (it has {type(head).__name__})")
    return embedding, head


def _check_extensible(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """Raise :class:`ModelError` for a model that cannot be extended; return its embedding and its head."""
    name = type(model).__name__
    embedding, head = _tables(model)
    rows = embedding.weight.shape[0]
    if not embedding.weight.is_floating_point() or embedding.weight.is_meta:
        raise ModelError(
            f"{name}'s embedding holds {embedding.weight.dtype} on {embedding.weight.device}: load it plain"
        )
    if head.weight.shape[0] != rows:
        raise ModelError(f"{name} has {rows} embedding rows but {head.weight.shape[0]} output columns")
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not embedding and module.num_embeddings == rows:
            raise ModelError(f"{name} has a second table over the vocabulary ({path}), which cannot be extended")
    return embedding, head


def _codebook_vectors(codec: VideoCodec, codebook: int) -> Tensor:
    if is_continuous(codec):
        return torch.zeros(1, codec.quantizer.dim)  # its one code stands for any latent
    vectors = codec.codebook_vectors(codebook).detach().float().cpu()
    if vectors.ndim != 2 or len(vectors) != codec.codebook_size or not bool(vectors.isfinite().all()):
        raise ModelError(
            f"the codec must give {codec.codebook_size} finite codebook vectors [N,D], got {list(vectors.shape)}"
        )
    return vectors


def _check_resized(model: PreTrainedModel, vocabulary: VideoVocabulary) -> None:
    embedding, head = _tables(model)
    rows = {
        "embedding": embedding.weight.shape[0],
        "output head": head.weight.shape[0],
        "config.vocab_size": model.config.get_text_config().vocab_size,
    }
    for what, size in rows.items():
        if size != vocabulary.total_size:
            raise ModelError(
                f"{type(model).__name__} did not resize: {what} is {size}, expected {vocabulary.total_size}"
            )
