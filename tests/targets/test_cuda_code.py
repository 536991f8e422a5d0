"""What nvcc makes of the kernels: machine code for both architectures, no spills, tensor cores."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import lowering
import pytest
import torch
from lowering import Cases, region
from test_lower_products import OUT, RELU6, X, bias, codes, multiplier

import qcompiler as qc
from qcompiler import nvcc
from qcompiler.context import Context
from qcompiler.ops import (
    Attention,
    BatchNorm,
    Gather,
    Gelu,
    IntConv2d,
    IntLinear,
    IntMatmul,
    LayerNorm,
    Linear,
    Matmul,
    Requantize,
    Softmax,
    const,
)  # fmt: skip
from qcompiler.passes.pack import packed
from qcompiler.runtime.bundle import KERNELS
from qcompiler.targets import Target, get
from qcompiler.targets.build import compiled, device_source
from qcompiler.targets.cuda import REGISTERS
from qcompiler.targets.lower import lower
from qcompiler.types import DType

NVDISASM = "nvdisasm"
needs_nvcc = pytest.mark.skipif(not nvcc.found(), reason="nvcc is not on PATH")
IMMA, COPY, MATRICES = "IMMA.16832.S8.S8", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4"
DP4A = "IDP.4A.S8.S8"
# Kernels of a module by the names they get: product and rows once per distinct function.
TENSOR, SMALL = ("product", "product1"), "product2"
PRODUCTS = ("product", "matmul", "direct")
INTEGER = (*TENSOR, SMALL, "matmul", "direct")
CONTRACTED_OR_APPROXIMATE = r"\b(FFMA|DFMA|MUFU)\b"


def kernels(target: Target) -> Cases:
    """A large and a small tile by mma, one for few rows by dp4a, float32, groups, rows, gathers."""
    cases, context = Cases(0), Context(target)
    x = cases.integers(0, 255, 2, 56, 56, 64, quant=X)
    conv = IntConv2d((1, 1), ((1, 1), (1, 1)), (1, 1), 1, True, zero_point=7)
    acc = conv(x, codes(cases, 128, 64, 3, 3), bias(cases, 128))
    code = Requantize(DType.UINT8, OUT)(acc, multiplier(cases, 128))
    cases.out(packed(region(code, [acc, code]), context))
    for rows in (100, 8):
        x = cases.integers(0, 255, rows, 256, quant=X)
        acc = IntLinear(7)(x, codes(cases, 64, 256), bias(cases, 64))
        code = Requantize(DType.UINT8, RELU6)(acc, multiplier(cases, 64))
        cases.out(packed(region(code, [acc, code]), context))
    y = cases.floats(100, 256)
    real = Linear()(y, const(torch.randn(64, 256, generator=cases.rng)))
    cases.out(packed(region(last := Gelu()(real), [real, last]), context))
    depthwise = IntConv2d((1, 1), ((1, 1), (1, 1)), (1, 1), 64, True, zero_point=7)
    image = cases.integers(0, 255, 1, 14, 14, 64, quant=X)
    cases.out(packed(depthwise(image, codes(cases, 64, 1, 3, 3)), context))
    a, b = (cases.integers(0, 255, 4, 64, 64, quant=X) for _ in range(2))
    cases.out(IntMatmul(7, 7)(a, b), Matmul()(cases.floats(4, 64, 64), cases.floats(4, 64, 64)))
    ones = const(torch.ones(256))
    cases.out(Softmax()(y), LayerNorm(1e-5)(y, ones, ones))
    cases.out(Gather(0)(y, cases.given(torch.tensor([1, 2]))))
    return cases


def source(cases: Cases, target: Target, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lowering, "TARGET", target)
    graph = lowering.fused(cases.inputs, cases.outputs)
    return device_source(compiled(lower(graph, target), target))


def disassembler() -> str | None:
    """nvdisasm, of the CUDA toolkit or of PyPI's nvidia-cuda-nvdisasm."""
    found = shutil.which(NVDISASM)
    spec = importlib.util.find_spec("nvidia")
    places = [] if found or spec is None else list(spec.submodule_search_locations or [])
    inside = [p for place in places for p in Path(place).glob(f"*/bin/{NVDISASM}")]
    return found or next(map(str, inside), None)


def machine_code(cubin: Path, tool: str) -> dict[str, str]:
    """The text of each kernel's instructions."""
    done = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True)
    parts = re.split(r"\.section\s+\.text\.(\w+?)_kernel\w*,", done.stdout)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def assembled(said: str) -> dict[str, tuple[int, int, int]]:
    """Bytes of stack frame, bytes of spills and registers of each kernel, as ptxas tells."""
    properties = re.findall(
        r"properties for (\w+)_kernel(_\d+)?\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s.*Used (\d+) registers", said,
    )  # fmt: skip
    return {n + e: (int(f), int(s) + int(again), int(r)) for n, e, f, s, again, r in properties}


@needs_nvcc
@pytest.mark.parametrize("name", ["cuda-sm80", "cuda-sm90"])
def test_every_kernel_assembles_without_spills(name: str, monkeypatch, tmp_path) -> None:
    target = get(name)
    text, cubin = tmp_path / "kernels.cu", tmp_path / "kernels.cubin"
    text.write_text(source(kernels(target), target, monkeypatch))
    flags = ("-cubin", f"-arch={target.tvm['arch']}", "-Xptxas", "-v")
    kernel_facts = assembled(nvcc.compile_to(cubin, text, *flags))
    bounds = re.findall(r"__launch_bounds__\((\d+)\) (\w+)_kernel(\w*)", text.read_text())
    threads = {name + end: int(count) for count, name, end in bounds}
    assert set(kernel_facts) == set(threads)
    for kernel, (frame, spills, registers) in kernel_facts.items():
        assert spills == 0, kernel
        if kernel.startswith(PRODUCTS):  # two blocks of one fit a multiprocessor
            assert frame == 0 and 2 * threads[kernel] * registers <= REGISTERS, kernel
    tool = disassembler()
    if tool is None:
        pytest.skip("assembled; no nvdisasm to look for tensor core instructions with")
    found = machine_code(cubin, tool)
    for kernel in (*TENSOR, "matmul"):
        assert all(i in found[kernel] for i in (IMMA, COPY, MATRICES)), kernel
    assert DP4A in found[SMALL] and IMMA not in found[SMALL]
    assert {k for k, code in found.items() if IMMA in code} == {*TENSOR, "matmul"}
    for kernel in INTEGER:
        assert not re.search(CONTRACTED_OR_APPROXIMATE, found[kernel]), kernel


@pytest.mark.parametrize("name", ["cuda-sm80", "cuda-sm90"])
def test_nothing_is_contracted_or_approximate(name: str, monkeypatch, tmp_path) -> None:
    """The flags that the law needs, and the architecture, as the command has them."""
    compiler, target = tmp_path / "nvcc", get(name)
    compiler.write_text('#!/bin/sh\necho "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("QC_NVCC", str(compiler))
    flags = set(nvcc.compile_to(Path("k.cubin"), Path("k.cu"), "-cubin").split())
    assert {"-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-cubin"} <= flags
    assert not any("fast" in flag for flag in flags)
    asked: list[str] = []
    monkeypatch.setattr(nvcc, "fatbin", lambda text, arch: asked.append(arch) or b"code")
    x = torch.tensor([-1.0, 2.0])
    graph = qc.quantize(qc.trace(torch.nn.ReLU().eval(), (x,)), None, name, "float32")
    assert bytes(qc.build(graph, name).bundle.members[KERNELS]) == b"code"
    assert asked == [target.architecture] == [name.replace("cuda-sm", "sm_")]


def test_text_is_the_same_for_the_same_graph(monkeypatch) -> None:
    target = get("cuda-sm90")
    first, second = (source(kernels(target), target, monkeypatch) for _ in range(2))
    assert first == second and 'extern "C" __global__' in first


def test_each_block_waits_once_a_step(monkeypatch) -> None:
    """TVM adds no barrier to that of the pipeline, where tiles come by cp.async alone."""
    target = get("cuda-sm80")
    text = source(kernels(target), target, monkeypatch)
    for kernel in text.split('extern "C" __global__')[1:]:
        if "product" in kernel.split("(")[1] and "cp_async" in kernel:
            assert kernel.count("__syncthreads") == 1 == kernel.count("wait_group_1()")


@pytest.mark.parametrize("op", [Attention, BatchNorm])
def test_what_has_no_lowering_is_refused_with_a_reason(op: type) -> None:
    assert "before it is lowered" in get("cuda-sm80").support[op]


def test_a_compiler_that_fails_is_quoted(monkeypatch) -> None:
    monkeypatch.setenv("QC_NVCC", "false")
    with pytest.raises(nvcc.NvccError, match=r"false .* failed"):
        nvcc.fatbin("", "sm_80")
    monkeypatch.setenv("QC_NVCC", "no-such-compiler")
    assert not nvcc.found()
    with pytest.raises(nvcc.NvccError, match=r"no-such-compiler cannot be run: .*set QC_NVCC"):
        nvcc.fatbin("", "sm_80")
