"""Models and data that the demo, `qcompiler bench NAME` and the tests run, by name.

Each entry is a SOURCE as the command line takes it: a function without arguments that returns
`(module, example_inputs)`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from qcompiler.zoo.packages import require

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "efficientnet_lite0": "qcompiler.zoo.efficientnet_lite:efficientnet_lite0",
        "resnet50": "qcompiler.zoo.resnet:resnet50",
        "mobilenet_v2": "qcompiler.zoo.mobilenet:mobilenet_v2",
        "mobilenet_v3_small": "qcompiler.zoo.mobilenet:mobilenet_v3_small",
        "mobilenet_v3_large": "qcompiler.zoo.mobilenet:mobilenet_v3_large",
        "unet": "qcompiler.zoo.unet:unet",
        "minilm": "qcompiler.zoo.minilm:minilm",
        "smollm2": "qcompiler.zoo.smollm2:smollm2",
        "rnet": "qcompiler.zoo.mtcnn:rnet",
        "onet": "qcompiler.zoo.mtcnn:onet",
        "silero_vad": "qcompiler.zoo.silero:silero_vad",
        "bert_base": "qcompiler.zoo.hf:bert_base",
        "vit_b16": "qcompiler.zoo.hf:vit_b16",
        "gpt2_small": "qcompiler.zoo.hf:gpt2_small",
        "llama_tiny": "qcompiler.zoo.hf:llama_tiny",
        "whisper_encoder": "qcompiler.zoo.hf:whisper_encoder",
        "gpt2_prefill": "qcompiler.zoo.gpt2:gpt2_prefill",
        "gpt2_decode": "qcompiler.zoo.gpt2:gpt2_decode",
        "gemm768": "qcompiler.zoo.products:gemm768",
        "gemv": "qcompiler.zoo.products:gemv",
    }
)


def load(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model called `name`, in eval mode, and inputs it takes.

    ValueError for a name that is not in MODELS, ImportError when a package it needs is absent.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r} in the zoo; there are: {', '.join(MODELS)}")
    require("torch")
    module, function = MODELS[name].split(":")
    source = getattr(import_module(module), function)
    model, inputs = source()
    return model, inputs
