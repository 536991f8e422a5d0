"""What exists only in a FUSED graph: regions, and weights packed for a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Node
from qcompiler.op import Op
from qcompiler.ops.values import Input
from qcompiler.types import QParams, TensorType, Type

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Packing:
    """The weight layout a matmul kernel reads, for w [O, I/groups, KH, KW] (linear: KH = KW = 1).

    [groups, ceil(O/groups / lanes), KH, KW, ceil(I/groups / depth), lanes, depth], zero padded:
    `lanes` output channels side by side, `depth` products per accumulator lane and instruction.
    taps: w is depthwise, [C, 1, KH, KW]; the KW taps of a kernel row stand where the input channels
    of other weights do, so that an instruction takes `depth` of them.
    """

    lanes: int
    depth: int
    groups: int = 1
    taps: bool = False

    def shape(self, w: tuple[int, ...]) -> tuple[int, ...]:
        out, per_group, *kernel = (*w, 1, 1)[:4]
        if self.taps:
            per_group, kernel = kernel[1], [kernel[0], 1]
        blocks = -(-(out // self.groups) // self.lanes)
        deep = -(-per_group // self.depth)
        return (self.groups, blocks, *kernel, deep, self.lanes, self.depth)

    def pack(self, w: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        full = w.reshape(*w.shape, *[1] * (4 - w.ndim))
        full = full.transpose(1, 3) if self.taps else full
        groups, blocks, kh, kw, deep, lanes, depth = self.shape(tuple(w.shape))
        out = full.shape[0] // groups
        full = full.reshape(groups, out, *full.shape[1:])
        pads = (0, 0, 0, 0, 0, deep * depth - full.shape[2], 0, blocks * lanes - out)
        full = F.pad(full, pads).reshape(groups, blocks, lanes, deep, depth, kh, kw)
        return full.permute(0, 1, 5, 6, 3, 2, 4).contiguous()

    def unpack(self, packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        groups, blocks, kh, kw, deep, lanes, depth = packed.shape
        full = packed.permute(0, 1, 5, 4, 6, 2, 3)
        full = full.reshape(groups, blocks * lanes, deep * depth, kh, kw)
        out = shape[0] // groups
        if self.taps:
            return full[0, :out, : shape[3]].transpose(1, 3).contiguous()
        return full[:, :out, : shape[1]].reshape(shape).contiguous()


@dataclass(frozen=True)
class Unpack(Op):
    """Packed weights seen in their natural shape. A kernel that takes it reads them packed."""

    packing: Packing
    shape: tuple[int, ...]
    out: QParams | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        (packed,) = inputs
        expected = self.packing.shape(self.shape)
        self.expects(packed.shape == expected, f"packed weights {expected}", packed)
        return TensorType(self.shape, packed.dtype, self.out)

    def eval(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.packing.unpack(inputs[0], self.shape)


@dataclass(frozen=True)
class Step:
    """One op of a region; args count the region's inputs first, then earlier steps."""

    op: Op
    args: tuple[int, ...]


@dataclass(frozen=True)
class Region(Op):
    """Several ops that one kernel computes: its value is that of its last step."""

    steps: tuple[Step, ...]

    def body(self, inputs: Sequence[Node]) -> list[Node]:
        """The steps as nodes over the given operands: the region written out."""
        nodes = list(inputs)
        for step in self.steps:
            nodes.append(step.op(*(nodes[k] for k in step.args)))
        return nodes[len(inputs) :]

    def type_of(self, inputs: Sequence[Node]) -> Type:
        return self.body(inputs)[-1].type

    def infer(self, *inputs: TensorType) -> Type:
        return self.type_of([Input(t)() for t in inputs])

    def eval(self, *inputs: torch.Tensor) -> Any:
        values: list[Any] = list(inputs)
        for step in self.steps:
            values.append(step.op.eval(*(values[k] for k in step.args)))
        return values[-1]


def steps_of(node: Node) -> tuple[Step, ...]:
    """A node as steps, whether it is a region or a single op."""
    if isinstance(node.op, Region):
        return node.op.steps
    return (Step(node.op, tuple(range(len(node.inputs)))),)
