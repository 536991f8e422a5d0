"""Real models: the compiled program gives the interpreter's integers, and near float answers."""

import subprocess
import sys

import pytest
import torch

import qcompiler as qc
from qcompiler.interpret import interpret
from qcompiler.runtime.verify import verify
from qcompiler.zoo import load
from qcompiler.zoo.data import minilm_batches

CNNS = ("resnet50", "mobilenet_v2", "mobilenet_v3_small")
SENTENCES = 100
LENGTH = 48  # tokens; the longest of the sentences is cut


@pytest.mark.parametrize("name", CNNS)
def test_random_weight_cnns(name):
    net, inputs = load(name)
    graph = qc.trace(net, inputs)
    quant = qc.quantize(graph, [inputs], "native", "int8")
    model = qc.build(quant, "native")
    (x,) = inputs
    for sample in (x, torch.randn(x.shape, generator=torch.Generator().manual_seed(3))):
        assert torch.equal(model(sample), interpret(quant, sample))


@pytest.fixture(scope="module")
def minilm():
    net, _ = load("minilm")
    sentences = list(minilm_batches(SENTENCES, LENGTH))
    with torch.no_grad():
        embeddings = [net(*s) for s in sentences]
    return qc.trace(net, sentences[0]), sentences, torch.cat(embeddings)


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_minilm(minilm, recipe):
    graph, sentences, embeddings = minilm
    calibration = minilm_batches(32, LENGTH, "calibration") if recipe == "int8" else None
    model = qc.build(qc.quantize(graph, calibration, "native", recipe), "native")
    verdict = verify(model, sentences[0])
    assert len(verdict.kernels) > 100
    assert verdict.holds, "\n".join(map(str, verdict.failures))
    tolerant = [k.op for k in verdict.kernels if not k.exact]
    assert len(tolerant) == (0 if recipe == "int8" else 12), tolerant  # attention stays float
    ours = torch.cat([model(*s) for s in sentences])
    cosine = torch.cosine_similarity(ours, embeddings).mean()
    assert cosine >= 0.99, float(cosine)


@pytest.mark.parametrize("name", ["rnet", "onet", "unet", "silero_vad"])
def test_small_nets(name):
    """PReLU, ceil-mode pools and several outputs; transposed convolution; recurrent state."""
    net, inputs = load(name)
    graph = qc.trace(net, inputs)
    quant = qc.quantize(graph, [inputs], "native", "int8")
    verdict = verify(qc.build(quant, "native"), inputs)
    assert verdict.kernels and verdict.holds, "\n".join(map(str, verdict.failures))


TWICE = """
import qcompiler as qc, torch
from qcompiler.zoo import load
net, (x,) = load("rnet")
items = [torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(k)) for k in range(8)]
graph = qc.trace(net, (x[:1],))
print(qc.quantize(graph, items, "x86-64-v3", "int8"))
"""


def test_two_processes_give_the_same_text():
    run = [sys.executable, "-c", TWICE]
    first, second = (subprocess.run(run, capture_output=True, check=True).stdout for _ in range(2))
    assert first == second and b"int_conv2d" in first


def test_calibration_is_independent_of_batches():
    net, (x,) = load("rnet")
    graph = qc.trace(net, (x[:1],))
    items = [torch.randn(1, *x.shape[1:]) for _ in range(16)]
    shuffled = [items[k] for k in torch.randperm(16)]
    eights = [torch.cat(shuffled[:8]), torch.cat(shuffled[8:])]
    texts = [str(qc.quantize(graph, data)).splitlines() for data in (items, eights)]
    plain, other = ([line.split("  # ")[0] for line in text] for text in texts)
    assert plain == other


def test_symbolic_batch():
    net, (x,) = load("rnet")
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = qc.trace(net, (torch.cat([x[:1]] * 2),), dynamic_shapes=({0: batch},))
    quant = qc.quantize(graph, [torch.randn(4, *x.shape[1:])], "native", "int8")
    model = qc.build(quant, "native")
    for size in (1, 3, 8):
        sample = torch.randn(size, *x.shape[1:])
        for ours, oracle in zip(model(sample), interpret(quant, sample), strict=True):
            assert torch.equal(ours, oracle)
