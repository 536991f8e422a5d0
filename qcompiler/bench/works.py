"""The works that `qcompiler bench` knows by name: a model, seeded inputs, recipes tried on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qcompiler.peers.mode import Family, Inputs

if TYPE_CHECKING:
    import torch

CALIBRATION = range(1, 9)
"""Seeds of the calibration inputs of a work. Random weights have the seed 0: an input of that
seed would be one of their rows, and its product with itself far outside the usual range."""
HELD_OUT = 1000
"""Seed of the one input that results are compared on."""
MASKED = 16
"""Tokens at the end of BERT's input that are padding."""

RECIPES: Mapping[Family, tuple[str, ...]] = MappingProxyType(
    {
        Family.CONVOLUTION: ("float32", "int8", "int8-fast", "auto"),
        Family.TRANSFORMER: ("float32", "int8", "int8-dynamic", "int8-fast", "auto"),
        Family.PRODUCT: ("float32", "int8", "int8-dynamic", "int8-fast"),
        Family.WEIGHTS: (
            "float32", "int8", "int8-dynamic", "int8-fast", "w8a16", "w4a8", "w4a16",
        ),
    }
)  # fmt: skip
"""Our recipes that make sense for a family."""

Draw = Callable[[int, int], Inputs]
"""(batch, seed) -> the inputs, the same for the same arguments."""


@dataclass(frozen=True, eq=False)
class Work:
    """source: as in the zoo, a function that returns (module, inputs of batch 1)."""

    name: str
    source: str
    family: Family
    draw: Draw

    def module(self) -> torch.nn.Module:
        """Raises ImportError when a package that holds the model is absent."""
        file, _, function = self.source.partition(":")
        made: torch.nn.Module = getattr(import_module(file), function)()[0]
        return made

    def calibration(self, batch: int = 1) -> tuple[Inputs, ...]:
        return tuple(self.draw(batch, seed) for seed in CALIBRATION)

    def held_out(self, batch: int = 1) -> Inputs:
        return self.draw(batch, HELD_OUT)


def _normal(*shape: int, batched: int = 0) -> Draw:
    """Standard normal numbers; the axis `batched` of the shape counts per item of the batch."""

    def draw(batch: int, seed: int) -> Inputs:
        from qcompiler.zoo.randomize import noise

        return (noise(*_times(shape, batched, batch), seed=seed),)

    return draw


def _times(shape: tuple[int, ...], axis: int, batch: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] * batch, *shape[axis + 1 :])


def _bert(batch: int, seed: int) -> Inputs:
    import torch

    from qcompiler.zoo.gpt2 import token_ids

    mask = torch.ones(batch, 128, dtype=torch.int64)
    mask[:, -MASKED:] = 0
    return token_ids(batch, 128, seed, vocabulary=30522), mask


def _prompt(batch: int, seed: int) -> Inputs:
    from qcompiler.zoo.gpt2 import PROMPT, token_ids

    return (token_ids(batch, PROMPT, seed),)


def _decode(batch: int, seed: int) -> Inputs:
    from qcompiler.zoo.gpt2 import HEAD, HEADS, LAYERS, PROMPT, token_ids
    from qcompiler.zoo.randomize import noise

    cache = noise(2 * LAYERS, batch, HEADS, PROMPT, HEAD, seed=seed)
    return token_ids(batch, 1, seed), cache


PICTURE = _normal(1, 3, 224, 224)
ALL: tuple[Work, ...] = (
    Work("resnet50", "qcompiler.zoo.resnet:resnet50", Family.CONVOLUTION, PICTURE),
    Work("mobilenet_v2", "qcompiler.zoo.mobilenet:mobilenet_v2", Family.CONVOLUTION, PICTURE),
    Work("bert_base", "qcompiler.zoo.hf:bert_base", Family.TRANSFORMER, _bert),
    Work("vit_b16", "qcompiler.zoo.hf:vit_b16", Family.TRANSFORMER, PICTURE),
    Work("gpt2_small", "qcompiler.zoo.gpt2:gpt2_prefill", Family.TRANSFORMER, _prompt),
    Work("gpt2_decode", "qcompiler.zoo.gpt2:gpt2_decode", Family.WEIGHTS, _decode),
    Work("gemm768", "qcompiler.zoo.products:gemm768", Family.PRODUCT, _normal(768, 768)),
    Work("gemv", "qcompiler.zoo.products:gemv", Family.WEIGHTS, _normal(1, 4096)),
)


def find(name: str) -> Work | None:
    return next((w for w in ALL if w.name == name), None)


def family_of(module: Any) -> Family:
    """What a module that is no built-in work spends its time on, by the weights it has."""
    from torch import nn

    if not isinstance(module, nn.Module):
        return Family.TRANSFORMER
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    convolutions = _weights(m for m in module.modules() if isinstance(m, kinds))
    linear = _weights(m for m in module.modules() if isinstance(m, nn.Linear))
    return Family.CONVOLUTION if convolutions > linear else Family.TRANSFORMER


def _weights(layers: Iterable[torch.nn.Module]) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())
