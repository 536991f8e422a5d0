"""What exists only in a FUSED graph: regions, and weights packed for a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.graph import Node
from qcompiler.op import Op
from qcompiler.ops.values import Input
from qcompiler.types import DType, QParams, TensorType, Type

if TYPE_CHECKING:
    import torch


HALF_BYTE = 4
"""Bits of a code of which a byte holds two."""

CODE_OFFSET = 8
"""What is added to a 4-bit code in memory, so that halves of bytes need no sign."""


@dataclass(frozen=True)
class Packing:
    """The weight layout a matmul kernel reads, for w [O, I/groups, KH, KW] (linear: KH = KW = 1).

    [groups, ceil(O/groups / lanes), KH, KW, ceil(I/groups / depth), lanes, depth], zero padded:
    `lanes` output channels side by side, `depth` products per accumulator lane and instruction.
    taps: the KW taps of a kernel row, each with its channels, stand where the input channels of
    other weights do, so that an instruction takes `depth` of them: depthwise weights, and those of
    few channels.
    whole: I/groups is filled up to a multiple of it. bits: with 4, of two steps along I the codes
    of the first are the low halves of bytes, plus 8, and those of the second the high halves; a
    last step that is alone is followed by zeros.
    """

    lanes: int
    depth: int
    groups: int = 1
    taps: bool = False
    whole: int = 1
    bits: int = 8

    def shape(self, w: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the packed tensor of weights of shape w, of 1, 2 or 4 dimensions."""
        groups, blocks, kh, kw, deep, lanes, depth = self._steps(w)
        return (groups, blocks, kh, kw, -(-deep * self.bits // 8), lanes, depth)

    def _steps(self, w: tuple[int, ...]) -> tuple[int, ...]:
        out, per_group, *kernel = (*w, 1, 1, 1)[:4]
        if self.taps:
            per_group, kernel = kernel[1] * per_group, [kernel[0], 1]
        blocks = -(-(out // self.groups) // self.lanes)
        deep = -(-(-(-per_group // self.whole) * self.whole) // self.depth)
        return (self.groups, blocks, *kernel, deep, self.lanes, self.depth)

    def pack(self, w: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F

        full = w.reshape(*w.shape, *[1] * (4 - w.ndim))
        if self.taps:
            full = full.permute(0, 3, 1, 2).flatten(1, 2).unsqueeze(3)
        groups, blocks, kh, kw, deep, lanes, depth = self._steps(tuple(w.shape))
        out = full.shape[0] // groups
        full = full.reshape(groups, out, *full.shape[1:])
        pads = (0, 0, 0, 0, 0, deep * depth - full.shape[2], 0, blocks * lanes - out)
        full = F.pad(full, pads).reshape(groups, blocks, lanes, deep, depth, kh, kw)
        full = full.permute(0, 1, 5, 6, 3, 2, 4).contiguous()
        return _halves(full) if self.bits == HALF_BYTE else full

    @property
    def of_scales(self) -> Packing:
        """The layout of the scales [O] or [O, groups] of such weights."""
        return Packing(self.lanes, 1)

    def unpack(self, packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if self.bits == HALF_BYTE:
            packed = _whole(packed)
        groups, blocks, kh, kw, deep, lanes, depth = packed.shape
        full = packed.permute(0, 1, 5, 4, 6, 2, 3)
        full = full.reshape(groups, blocks * lanes, deep * depth, kh, kw)
        out = shape[0] // groups
        if self.taps:
            _, channels, height, width = shape
            rows = full[0, :out, : width * channels].reshape(out, width, channels, height)
            return rows.permute(0, 2, 3, 1).contiguous()
        return full[:, :out, : (*shape, 1)[1]].reshape(shape).contiguous()


def _halves(codes: torch.Tensor) -> torch.Tensor:
    """Steps (axis 4) of 4-bit codes, two a byte. Raises ValueError for codes of more bits."""
    import torch
    import torch.nn.functional as F

    if codes.numel() and not bool(((codes >= -CODE_OFFSET) & (codes < CODE_OFFSET)).all()):
        raise ValueError(f"4-bit codes: expected -8 to 7, got {codes.min()} to {codes.max()}")
    even = F.pad(codes, (0, 0, 0, 0, 0, codes.shape[4] % 2)).to(torch.int16) + CODE_OFFSET
    return (even[:, :, :, :, ::2] + (even[:, :, :, :, 1::2] << HALF_BYTE)).to(torch.uint8)


def _whole(halves: torch.Tensor) -> torch.Tensor:
    """The inverse of `_halves`, with the zeros that were filled in."""
    import torch

    both = torch.stack([halves & 15, halves >> HALF_BYTE], 5).to(torch.int8) - CODE_OFFSET
    return both.flatten(4, 5)


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
        halves = self.packing.bits == HALF_BYTE
        return TensorType(self.shape, DType.INT8 if halves else packed.dtype, self.out)

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
