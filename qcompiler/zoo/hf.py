"""Transformer architectures from `transformers`, with random weights: what must trace, and speed.

`reduced` keeps every kind of operation and drops layers and width, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qcompiler.zoo.packages import require
from qcompiler.zoo.randomize import noise

Source = tuple[nn.Module, tuple[Tensor, ...]]

REDUCED_LAYERS = 2


def _transformers() -> Any:
    require("transformers")
    import transformers

    return transformers


def _build(model: Any, config: Any, seed: int = 0) -> nn.Module:
    # The constructors draw from torch's global generator; nobody else's numbers may depend on it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = model(config)
    return built.eval()


def _ids(vocabulary: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, length), generator=generator)


def bert_base(reduced: bool = False) -> Source:
    """BERT-base without its pooler; ids and mask [1, 128], the last 16 tokens masked."""
    t = _transformers()
    small = {"num_hidden_layers": REDUCED_LAYERS, "vocab_size": 1000} if reduced else {}
    config = t.BertConfig(**small)
    length = 32 if reduced else 128
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, -16:] = 0
    model = _build(lambda c: t.BertModel(c, add_pooling_layer=False), config)
    return model, (_ids(config.vocab_size, length), mask)


def vit_b16(reduced: bool = False) -> Source:
    """ViT-B/16 classifier; pictures [1, 3, 224, 224], or [1, 3, 64, 64]."""
    t = _transformers()
    small = {"num_hidden_layers": REDUCED_LAYERS, "image_size": 64} if reduced else {}
    config = t.ViTConfig(num_labels=1000, **small)
    size = config.image_size
    return _build(t.ViTForImageClassification, config), (noise(1, 3, size, size),)


def gpt2_small(reduced: bool = False) -> Source:
    """GPT-2 small with its language-model head, no cache; ids [1, 64]."""
    t = _transformers()
    small = {"n_layer": REDUCED_LAYERS, "vocab_size": 1000} if reduced else {}
    # Its end-of-text token is beyond the reduced vocabulary.
    config = t.GPT2Config(use_cache=False, bos_token_id=0, eos_token_id=0, **small)
    return _build(t.GPT2LMHeadModel, config), (_ids(config.vocab_size, 16 if reduced else 64),)


def llama_tiny(reduced: bool = False) -> Source:
    """A Llama of SmolLM2-135M's shape (30 x 576, 9 heads over 3), no cache; ids [1, 64]."""
    t = _transformers()
    config = t.LlamaConfig(
        vocab_size=1000 if reduced else 49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=REDUCED_LAYERS if reduced else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return _build(t.LlamaForCausalLM, config), (_ids(config.vocab_size, 16 if reduced else 64),)


def whisper_encoder(reduced: bool = False) -> Source:
    """The encoder of Whisper-tiny; log-mel features [1, 80, 3000], or [1, 80, 200]."""
    t = _transformers()
    small = {"encoder_layers": REDUCED_LAYERS, "max_source_positions": 100} if reduced else {}
    config = t.WhisperConfig(**small)
    model = _build(lambda c: t.WhisperModel(c).get_encoder(), config)
    # Each position of the encoder sees two frames.
    return model, (noise(1, config.num_mel_bins, 2 * config.max_source_positions),)
