"""The traced graph of every model of the zoo, interpreted, equals PyTorch."""

from collections.abc import Callable

import pytest
import torch

from qcompiler import zoo
from qcompiler.frontend import trace
from qcompiler.interpret import interpret
from qcompiler.ops import (
    Attention,
    BatchNorm,
    Clamp,
    Const,
    Conv2d,
    Dilate,
    Hardswish,
    Linear,
    Prelu,
)
from qcompiler.zoo import hf

LIMIT = 1e-4
"""Largest error over the output's largest magnitude; measured: at most 3e-6 on any of these."""

PICTURE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

CONVOLUTIONAL = {
    "resnet50": {Conv2d: 53, BatchNorm: 53, Clamp: 49, Linear: 1},
    "mobilenet_v2": {Conv2d: 52, BatchNorm: 52, Clamp: 35, Linear: 1},
    "mobilenet_v3_small": {Conv2d: 52, Hardswish: 19},
    "efficientnet_lite0": {Conv2d: 49, BatchNorm: 49, Clamp: 33},
    "unet": {Conv2d: 18, BatchNorm: 14, Dilate: 1},
}


def kinds(graph, op):
    return sum(isinstance(n.op, op) for n in graph.nodes())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional(agrees, name):
    module, _ = zoo.load(name)
    graph = agrees(module, PICTURE, limit=LIMIT, name=name)
    for op, count in CONVOLUTIONAL[name].items():
        assert kinds(graph, op) == count, f"{name}: {op.__name__}"


@pytest.mark.parametrize("name", ["rnet", "onet", "silero_vad", "minilm"])
def test_small(agrees, name):
    module, inputs = zoo.load(name)
    graph = agrees(module, *inputs, limit=LIMIT, name=name)
    if name in ("rnet", "onet"):
        assert kinds(graph, Prelu) in (4, 5)
        assert len(graph.outputs) in (2, 3)
    if name == "silero_vad":
        assert len(graph.outputs) == len(graph.inputs) == 2


@pytest.mark.parametrize(
    "make", [hf.bert_base, hf.vit_b16, hf.gpt2_small, hf.llama_tiny, hf.whisper_encoder]
)
def test_transformer(agrees, make: Callable[..., hf.Source]):
    module, inputs = make(reduced=True)
    graph = agrees(module, *inputs, limit=LIMIT, name=make.__name__)
    assert kinds(graph, Attention) == 2
    masked = make in (hf.bert_base, hf.gpt2_small, hf.llama_tiny)
    masks = [len(n.inputs) - 3 for n in graph.nodes() if isinstance(n.op, Attention)]
    assert masks == [int(masked)] * 2
    if make is hf.gpt2_small:
        assert module.lm_head.weight is module.transformer.wte.weight
        shape = tuple(module.lm_head.weight.shape)
        shared = [n for n in graph.nodes() if isinstance(n.op, Const) and n.tensor.shape == shape]
        assert len(shared) == 1, "tied weights are one constant"


def test_weights_are_copied():
    module = torch.nn.Linear(3, 2).eval()
    x = torch.randn(1, 3)
    graph = trace(module, x)
    before = interpret(graph, x)
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(interpret(graph, x), before)
