"""Many kernels in one module: outputs are collected, built once and held to the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import tvm

from qcompiler.graph import Graph, Level, Node
from qcompiler.interpret import interpret
from qcompiler.ops import Input, Region, Step
from qcompiler.runtime.device import DeviceSlot, with_kernels
from qcompiler.runtime.engine import opened
from qcompiler.targets import get
from qcompiler.targets.build import compiled, runner, shared_object
from qcompiler.targets.lower import Lowered, lower
from qcompiler.types import Dim, DType, QParams, TensorType, symbol

TARGET = get("x86-64-v3")  # a test may set another one
BATCH = symbol("batch")
# The values where formulas that are equal for real numbers differ in floats.
SPECIAL = (
    float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-45, 1e-40, -1.2e-38, 3.4e38,
    -3.4e38, 0.5, 1.5, -2.5, 1.0, 88.8, -104.5, 16777217.0,
)  # fmt: skip


def fused(inputs: Sequence[Node], outputs: Sequence[Node]) -> Graph:
    return Graph(tuple(inputs), tuple(outputs), level=Level.FUSED, target=TARGET.name)


def region(last: Node, inside: Sequence[Node]) -> Node:
    """The nodes `inside`, in order and ending in `last`, as one region."""
    outer = list(dict.fromkeys(i for n in inside for i in n.inputs if i not in inside))
    index = {node: k for k, node in enumerate([*outer, *inside])}
    steps = tuple(Step(n.op, tuple(index[i] for i in n.inputs)) for n in inside)
    return Region(steps)(*outer, name=last.name)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise: equal bits, or both NaN."""
    if not a.dtype.is_floating_point:
        return a == b
    bits = torch.int64 if a.dtype is torch.float64 else torch.int32
    return (a.view(bits) == b.view(bits)) | ((a != a) & (b != b))


def executed(lowered: Lowered, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the module gives for these inputs, on the device of TARGET."""
    executable = compiled(lowered, TARGET)
    if TARGET.device == "cpu":
        return list(runner(executable, lowered.weights)(*values))
    device = tvm.device(TARGET.device, 0)
    with with_kernels(TARGET.name, TARGET.architecture, b""):
        module = opened(shared_object(executable, TARGET), None)
    slot = DeviceSlot.of(module, device)
    weights = [tvm.runtime.tensor(t.numpy(), device) for _, t in lowered.weights]
    outputs, _ = slot.run(values, (), weights, lowered.faults)
    return [torch.from_numpy(o.numpy()) for o in outputs]


class Cases:
    """Inputs with their values, and outputs, that become one module."""

    def __init__(self, seed: int = 0, batch: int = 2) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.batch = batch
        self.inputs: list[Node] = []
        self.values: list[torch.Tensor] = []
        self.outputs: list[Node] = []

    def given(
        self, value: torch.Tensor, quant: QParams | None = None, symbolic: bool = False
    ) -> Node:
        """An input that holds `value`; `symbolic`: its first dimension is the batch."""
        shape: tuple[Dim, ...] = tuple(value.shape)
        shape = (BATCH, *shape[1:]) if symbolic else shape
        node = Input(TensorType(shape, DType.of(value.dtype), quant))(name=f"x{len(self.inputs)}")
        self.inputs.append(node)
        self.values.append(value)
        return node

    def floats(self, *shape: int, scale: float = 3.0, **options: Any) -> Node:
        value = torch.randn(shape, generator=self.rng) * scale
        return self.given(value, **options)

    def special(self, *shape: int, **options: Any) -> Node:
        """Floats among which every special value occurs, as far as there is room."""
        value = torch.randn(shape, generator=self.rng) * 4
        flat = value.reshape(-1)
        chosen = torch.randperm(flat.numel(), generator=self.rng)[: len(SPECIAL)]
        flat[chosen] = torch.tensor(SPECIAL)[: len(chosen)]
        return self.given(value, **options)

    def integers(self, low: int, high: int, *shape: int, dtype: Any = torch.uint8,
                 **options: Any) -> Node:  # fmt: skip
        value = torch.randint(low, high + 1, shape, generator=self.rng).to(dtype)
        return self.given(value, **options)

    def out(self, *nodes: Node) -> None:
        self.outputs += nodes

    def results(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(what the built module computes, what the interpreter does)."""
        graph = fused(self.inputs, self.outputs)
        lowered = lower(graph, TARGET)
        got = executed(lowered, self.values)
        want = interpret(graph, *self.values)
        return got, list(want) if isinstance(want, tuple) else [want]

    def check(self) -> None:
        """Every output is the interpreter's, bit for bit."""
        got, want = self.results()
        wrong = []
        for node, a, b in zip(self.outputs, got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, node
            same = same_bits(a, b)
            if not bool(same.all()):
                wrong.append(f"{node!r}: {a[~same][:4].tolist()}, expected {b[~same][:4].tolist()}")
        assert not wrong, "\n".join(wrong)

    def check_near(self, tolerance: float = 1e-4) -> None:
        """Every output is within `tolerance` of the interpreter's largest magnitude."""
        got, want = self.results()
        for node, a, b in zip(self.outputs, got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, node
            worst = float((a - b).abs().max()) / float(b.abs().max())
            assert worst <= tolerance, f"{node!r}: {worst}"
