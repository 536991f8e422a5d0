"""GPT-2 small (Radford et al., 2019) as plain blocks: a whole prompt, or a token and a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.zoo.randomize import noise

LAYERS, WIDTH, HEADS = 12, 768, 12
INNER, HEAD = 4 * WIDTH, WIDTH // HEADS
VOCABULARY, POSITIONS = 50257, 1024
PROMPT = 128
"""Tokens of the prompt, and of the cache that a further token attends to."""
WEIGHT_SPREAD = 0.02
"""Standard deviation of GPT-2's own initial weights."""


class Block(nn.Module):
    """Causal attention, then a feed-forward net, each normalised before and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None) -> Tensor:
        """x [N, T, 768]; keys and values [N, 12, P, 64] of the tokens before, or None."""
        parts = self.qkv(self.norm1(x)).split(WIDTH, -1)
        q, k, v = (p.unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for p in parts)
        if keys is None or values is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
            mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Embeddings, blocks and the head, which shares its weight with the embedding of words."""

    def __init__(self, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.words.weight

    def logits(self, x: Tensor) -> Tensor:
        """[N, T, 768] -> [N, vocabulary], of the last token."""
        return self.head(self.norm(x[:, -1]))


class Prefill(GPT2):
    """int64 ids [N, T] -> float32 logits [N, vocabulary] of the token that follows."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, None, None)
        return self.logits(x)


class Decode(GPT2):
    """int64 id [N, 1] and cache [2 * layers, N, 12, P, 64], keys and values of each layer in
    turn -> float32 logits [N, vocabulary]."""

    def forward(self, ids: Tensor, cache: Tensor) -> Tensor:
        past = cache.shape[3]
        x = self.words(ids) + self.positions.weight[past : past + 1]
        for k, block in enumerate(self.blocks):
            x = block(x, cache[2 * k], cache[2 * k + 1])
        return self.logits(x)


def token_ids(batch: int, length: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    """int64 [batch, length], every token as likely, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def made(kind: type[GPT2], layers: int = LAYERS, vocabulary: int = VOCABULARY) -> GPT2:
    """A model of seeded normal weights, in eval mode; norms as they begin, biases zero."""
    generator = torch.Generator().manual_seed(0)
    model = kind(layers, vocabulary)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, WEIGHT_SPREAD, generator=generator)
            elif name.endswith("bias"):
                weight.zero_()
    return model.eval()


def gpt2_prefill() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """GPT-2 small with random weights and a prompt of 128 tokens."""
    return made(Prefill), (token_ids(1, PROMPT),)


def gpt2_decode() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """GPT-2 small with random weights, one token, and a cache of 128: float32 [24, 1, 12, 128, 64].

    Keys and values are standard normal.
    """
    return made(Decode), (token_ids(1, 1), noise(2 * LAYERS, 1, HEADS, PROMPT, HEAD))
