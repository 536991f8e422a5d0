"""Whole models through the Relax VM on device cuda, and what an artifact for a GPU holds."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import emulated
import numpy as np
import pytest
import test_fuzz_graphs as fuzz
import test_random_layers as layers
import torch
from torch import nn

import qcompiler as qc
from qcompiler import nvcc
from qcompiler.errors import InputError
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.runtime import CompiledModel
from qcompiler.runtime import device as devices
from qcompiler.runtime.bundle import KERNELS, LIBRARY
from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.signature import check
from qcompiler.runtime.verify import verify
from qcompiler.targets import get
from qcompiler.zoo import load

TARGETS = ("cuda-sm80", "cuda-sm90")


class Encoder(nn.Module):
    """Ids to classes: embedding, one transformer layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.table(ids)))


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.MaxPool2d(2),
        nn.Conv2d(8, 24, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 4),
    ).eval()  # fmt: skip


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


PICTURE = (torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)),)
IDS = (torch.tensor([[1, 2, 3, 49, 0, 7, 7, 20, 31]]),)


def quantized(net: nn.Module, inputs: tuple, target: str, recipe: str = "int8") -> Graph:
    return qc.quantize(qc.trace(net, inputs), [inputs], target, recipe)


def holds(model: CompiledModel, inputs: tuple) -> int:
    """Every kernel gives the interpreter's bits on its own operands; how many there are."""
    verdict = verify(model, inputs)
    assert verdict.kernels and verdict.holds, "\n".join(map(str, verdict.failures))
    return len(verdict.kernels)


@pytest.mark.parametrize("target", TARGETS)
def test_a_conv_net(gpu: None, target: str) -> None:
    graph = quantized(convnet(), PICTURE, target)
    model = qc.build(graph, target)
    assert holds(model, PICTURE) >= 7
    assert torch.equal(model(*PICTURE), interpret(graph, *PICTURE))


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_a_transformer(gpu: None, recipe: str) -> None:
    model = qc.build(quantized(transformer(), IDS, "cuda-sm80", recipe), "cuda-sm80")
    assert holds(model, IDS) > 20
    with pytest.raises(IndexError, match=r"gather: expected indices in 0\.\.49, got one outside"):
        model(torch.full((1, 9), 50))
    assert model(*IDS).shape == (1, 9, 5)  # the failed call has left nothing behind


def test_rnet(gpu: None) -> None:
    """MTCNN's R-Net: PReLU, pools with ceil, several outputs."""
    net, (x,) = load("rnet")
    graph = quantized(net, (x[:1],), "cuda-sm90")
    model = qc.build(graph, "cuda-sm90")
    assert holds(model, (x[:1],)) >= 10
    for ours, oracle in zip(model(x[:1]), interpret(graph, x[:1]), strict=True):
        assert torch.equal(ours, oracle)


def test_one_integer_graph_has_one_answer(gpu: None) -> None:
    """Quantized once, for nothing; built for a CPU and both GPUs."""
    graph = layers.module(5)
    x = layers.values(graph, 5)
    answers = [qc.build(graph, name)(*x) for name in ("x86-64-v3", *TARGETS)]
    for node, wanted, *others in zip(graph.outputs, *answers, strict=True):
        assert all(torch.equal(wanted, o) for o in others), node


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_random_graphs(gpu: None, recipe: str) -> None:
    graph, inputs = fuzz.programs(fuzz.SEEDS, recipe)
    assert holds(qc.build(graph, "cuda-sm90"), tuple(inputs)) > 50


def test_state_stays_on_the_device(gpu: None) -> None:
    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            return self.total * 2

    x = torch.tensor([1.0, 2.0, 3.0])
    model = qc.build(qc.quantize(qc.trace(Count().eval(), (x,)), None, TARGETS[0], "float32"),
                     TARGETS[0])  # fmt: skip
    assert [model(x).tolist() for _ in range(3)] == [[2, 4, 6], [4, 8, 12], [6, 12, 18]]
    assert "cuda" in str(model._state[0].device)  # type: ignore[index]
    model.reset_state()
    assert model(x.numpy()).tolist() == [2, 4, 6]


def test_calls_from_several_threads(gpu: None) -> None:
    model = qc.build(quantized(convnet(), PICTURE, TARGETS[1]), TARGETS[1])
    pictures = [torch.randn(1, 3, 12, 12) for _ in range(4)]
    wanted = [model(p) for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(model, pictures * 2))
    assert all(map(torch.equal, got, wanted * 2))


def saved(path: Path, target: str = "cuda-sm80") -> Path:
    model = qc.build(quantized(convnet(), PICTURE, target), target)
    model.save(path)
    return path


def test_an_artifact_says_what_device_it_needs(gpu: None, tmp_path) -> None:
    loaded = qc.load(saved(tmp_path / "m.qcm"))
    manifest = loaded.manifest
    assert manifest.device == "cuda" and manifest.architecture == "sm_80"
    assert manifest.cpu_features == get("x86-64-v3").features
    y = loaded(PICTURE[0].numpy())
    assert isinstance(y, np.ndarray) and y.shape == (1, 4)
    assert (KERNELS in loaded.bundle.members) == nvcc.found()
    assert b'extern "C" __global__' in bytes(loaded.bundle.members[LIBRARY])


@pytest.mark.skipif(not nvcc.found(), reason="nvcc is not on PATH")
def test_machine_code_travels_with_the_text(gpu: None, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("QC_NVCC", raising=False)
    path = saved(tmp_path / "m.qcm")
    monkeypatch.setenv("QC_NVCC", "")
    loaded = qc.load(path)
    code = bytes(loaded.bundle.members[KERNELS])
    assert code[:4] == b"\x50\xed\x55\xba"  # the magic number of a fat binary
    assert code[16:].count(b"\x7fELF") == 1  # one architecture
    assert holds(loaded, PICTURE)


NO_DEVICE = """
import sys
import qcompiler as qc
try:
    qc.load(sys.argv[1])
except qc.runtime.MachineError as e:
    print(e)
"""


def test_without_a_device_there_is_one_clear_error(gpu: None, tmp_path) -> None:
    """In a process of its own, with TVM's runtime only; nothing of the library is opened."""
    if emulated.real_gpu():
        pytest.skip("this machine has a CUDA device")
    path = saved(tmp_path / "m.qcm")
    done = subprocess.run([sys.executable, "-c", NO_DEVICE, str(path)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    message = "the model was built for cuda-sm80, which this machine cannot run: it has no cuda"
    assert message in done.stdout and done.stdout.count("\n") == 1, done


class Wide(nn.Module):
    """`n` rows of 65536 elements, and `2 * n` of half as many."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        wide = torch.relu(x * y)
        return wide.sum(-1), wide.reshape(-1, 32768).amax(-1)


@pytest.mark.parametrize(("most", "expected"), [(None, 32767), (40000, 32767), (100, 100)])
def test_no_symbol_lets_a_tensor_reach_indices_beyond_int32(most, expected: int) -> None:
    example = (torch.zeros(3, 1), torch.zeros(65536))
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=most)}, "y": None}
    graph = qc.quantize(qc.trace(Wide().eval(), example, dynamic_shapes=shapes), None,
                        TARGETS[0], "float32")  # fmt: skip
    entry = qc.build(graph, TARGETS[0]).manifest.main
    ((name, (_, high)),) = entry.symbols.items()
    assert high == expected
    many = (np.zeros((high + 1, 1), np.float32), np.zeros(65536, np.float32))
    with pytest.raises(InputError, match=rf"input %x: expected {name} in 2\.\.{high}, got"):
        check(entry, many)
    assert qc.build(graph, "x86-64-v3").manifest.main.symbols[name] == (2, most)


def test_an_older_gpu_is_refused(gpu: None) -> None:
    library = qc.build(quantized(convnet(), PICTURE, TARGETS[0]), TARGETS[0])
    future = replace(library.manifest, features=("avx2", "sm_120"))
    with pytest.raises(MachineError, match=r"compute capability \d\.\d, expected 12\.0 or more"):
        devices.required(future)
