"""How long it takes to give a model of 20,000 ids of text 65,000 codes more, and whether the new rows are distinct.

    make bench ARGS=tests/benchmarks/bench_vocabulary.py

A tied embedding of 512 channels, fp32, two threads. Beside it stands transformers' ``resize_token_embeddings`` without
the mean and covariance of the old rows; its default, with them, takes minutes. The ways take turns. The processor's
seconds are those of all threads, of which other work on the machine takes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokvid_lm.extend import extend
from tokvid_tokenizers import VideoCodec
from tokvid_tokenizers.codec_config import CodecConfig
from tokvid_tokenizers.quantizers import FSQConfig

TEXT, HIDDEN, TURNS, THREADS = 20_000, 512, 3, 2
LEVELS = (13, 10, 10, 10, 5)


def build_model() -> LlamaForCausalLM:
    """One thin layer: what counts is the embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT,
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """As many words as the model has rows."""
    words = {f"w{number}": number for number in range(TEXT)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))


def embedding_of(model: LlamaForCausalLM) -> Tensor:
    """Its rows ``[ids,HIDDEN]``."""
    return model.model.embed_tokens.weight.detach()


def measure(change: Callable[[LlamaForCausalLM], object]) -> tuple[list[float], Tensor]:
    """Seconds, and those of the processor, of changing a new model; and the rows that it has then beyond text."""
    model = build_model()
    start, busy = time.perf_counter(), time.process_time()
    change(model)
    return [time.perf_counter() - start, time.process_time() - busy], embedding_of(model)[TEXT:]


def test_vocabulary() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    codec = VideoCodec(
        CodecConfig(channels=(16,), encoder_blocks=(1,), decoder_blocks=(1,), quantizer=FSQConfig(levels=LEVELS))
    )
    tokenizer = build_tokenizer()
    total = TEXT + codec.codebook_size
    ways: dict[str, Callable[[LlamaForCausalLM], object]] = {
        "tokvid, from the codec's codebook": lambda model: extend(model, codec, tokenizer=tokenizer),
        "transformers, mean_resizing=False": lambda model: model.resize_token_embeddings(total, mean_resizing=False),
    }
    try:
        rounds = [{way: measure(change) for way, change in ways.items()} for _ in range(TURNS)]
    finally:
        torch.set_num_threads(threads)
    print(f"\n{TEXT:,} rows of {HIDDEN} to {total:,}, medians of {TURNS} by turns\n")
    print("| way | seconds | of the processor | distinct rows | deviation of new rows, of text rows |")
    print("|---|---|---|---|---|")
    text = float(embedding_of(build_model()).std(0).mean())
    for way in ways:
        took, busy = (statistics.median(found[way][0][clock] for found in rounds) for clock in (0, 1))
        rows = rounds[0][way][1]
        distinct, deviation = len(torch.unique(rows, dim=0)), float(rows.std(0).mean())
        print(f"| {way} | {took:.2f} | {busy:.2f} | {distinct:,} of {len(rows):,} | {deviation:.1e}, {text:.1e} |")
        assert distinct == len(rows)
