"""A language model in a GGUF file is extended as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.lm.tiny import build_model, build_tokenizer
from tokvid.errors import ModelError
from tokvid_lm import VideoLM
from tokvid_lm.loading import load_causal_lm, load_tokenizer
from tokvid_tokenizers import load_codec

gguf = pytest.importorskip("gguf")
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def by_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the order of llama.cpp: the two numbers of each rotary pair side by side."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """A llama as llama.cpp's converter writes it, with a text tokenizer of bytes."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = build_tokenizer()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([tokenizer.convert_ids_to_tokens(number) for number in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_merges([])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for name, value in model.state_dict().items():
        if name in OUTSIDE:
            writer.add_tensor(OUTSIDE[name], value.numpy())
            continue
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(
            part
        )
        stored = value if heads is None else by_pairs(value, heads)
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_that_was_written(tmp_path: Path) -> None:
    model = build_model("llama")
    assert isinstance(model, LlamaForCausalLM)
    path = tmp_path / "tiny.gguf"
    write_gguf(model, path)
    ids = torch.arange(20).unsqueeze(0)
    again = load_causal_lm(path)
    narrow = load_causal_lm(path, dtype=torch.bfloat16)
    rotary = {name: buffer.dtype for name, buffer in narrow.named_buffers() if "inv_freq" in name}
    assert rotary and set(rotary.values()) == {torch.float32} and narrow.dtype == torch.bfloat16
    assert not again.training and not narrow.training
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4)
    assert load_tokenizer(path).decode([104, 105]) == build_tokenizer().decode([104, 105])
    lm = VideoLM.extend(path, codec=load_codec("preset:tiny"))
    lm.save_pretrained(tmp_path / "lm")
    with torch.no_grad():
        saved = VideoLM.from_pretrained(tmp_path / "lm").model(input_ids=ids).logits[..., :250]
    assert torch.allclose(saved, model(input_ids=ids).logits[..., :250], atol=1e-4)


def test_a_gguf_file_that_is_missing_or_torn_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf is no file"):
        load_causal_lm(tmp_path / "none.gguf")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"cannot load a causal language model from .*torn\.gguf"):
        load_causal_lm(tmp_path / "torn.gguf")
