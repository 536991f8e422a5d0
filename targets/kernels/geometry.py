"""What a kernel template is built for: sizes only, no weights, no graph, no TVM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcompiler import arith

# A dimension: its size, or the name of one known only at run time.
Dim = int | str


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution, NHWC; `batch` alone may be symbolic. padding: top, left, bottom, right."""

    batch: Dim
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"conv: {self.channels} -> {self.out_channels} channels are not divisible by "
                f"{self.groups} groups"
            )
        if min(self.out_height, self.out_width) < 1:
            raise ValueError(f"conv: the kernel {self.kernel} is larger than the padded input")

    def __str__(self) -> str:
        """All of it: `conv 1x56x56x64 -> 64, 3x3, pad 1,1,1,1`."""
        (kh, kw), sizes = self.kernel, (self.batch, self.height, self.width, self.channels)
        more = [
            f"{name} {','.join(map(str, value))}"
            for name, value, usual in (
                ("stride", self.stride, (1, 1)), ("dilation", self.dilation, (1, 1)),
                ("pad", self.padding, (0, 0, 0, 0)), ("groups", (self.groups,), (1,)),
            )
            if value != usual
        ]  # fmt: skip
        first = f"conv {'x'.join(map(str, sizes))} -> {self.out_channels}"
        return ", ".join((first, f"{kh}x{kw}", *more))

    @property
    def out_height(self) -> int:
        top, _, bottom, _ = self.padding
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + top + bottom - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        _, left, _, right = self.padding
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + left + right - reach) // self.stride[1] + 1

    @property
    def group_in(self) -> int:
        return self.channels // self.groups

    @property
    def group_out(self) -> int:
        return self.out_channels // self.groups

    def rowwise(self, depth: int) -> bool:
        """Whether a kernel row is taken like the channels of one tap; see `arith.rowwise`."""
        taps, dilation = self.kernel[1], self.dilation[1]
        return arith.rowwise(self.channels, taps, dilation, self.groups, depth)

    def row(self, depth: int) -> tuple[int, int]:
        """(taps of a kernel row that are taken apart, elements of each)."""
        if self.rowwise(depth):
            return 1, self.kernel[1] * self.channels
        return self.kernel[1], self.group_in

    @property
    def depthwise(self) -> bool:
        return self.groups == self.channels == self.out_channels

    @property
    def padded(self) -> bool:
        return any(self.padding)

    @property
    def pointwise(self) -> bool:
        """Whether output pixel i reads input pixel i and nothing else: a matrix product."""
        one = (1, 1)
        return self.kernel == one and self.stride == one and self.groups == 1 and not self.padded

    @property
    def in_shape(self) -> tuple[Dim, ...]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def out_shape(self) -> tuple[Dim, ...]:
        return (self.batch, self.out_height, self.out_width, self.out_channels)


@dataclass(frozen=True)
class Linear:
    """[*lead, k] x [n, k] -> [*lead, n]; the first of `lead` may be symbolic."""

    lead: tuple[Dim, ...]
    k: int
    n: int

    def __str__(self) -> str:
        """`linear 128x768 -> 3072`."""
        return f"linear {'x'.join(map(str, self.in_shape))} -> {self.n}"

    @property
    def single(self) -> bool:
        """Whether there is one row."""
        return all(d == 1 for d in self.lead)

    @property
    def in_shape(self) -> tuple[Dim, ...]:
        return (*self.lead, self.k)

    @property
    def out_shape(self) -> tuple[Dim, ...]:
        return (*self.lead, self.n)


@dataclass(frozen=True)
class Matmul:
    """[*lead, m, k] x [*lead, k, n] -> [*lead, m, n], b as [*lead, n, k] when `transposed`."""

    lead: tuple[Dim, ...]
    m: int
    k: int
    n: int
    transposed: bool = False

    @property
    def a_shape(self) -> tuple[Dim, ...]:
        return (*self.lead, self.m, self.k)

    @property
    def b_shape(self) -> tuple[Dim, ...]:
        return (*self.lead, *((self.n, self.k) if self.transposed else (self.k, self.n)))

    @property
    def out_shape(self) -> tuple[Dim, ...]:
        return (*self.lead, self.m, self.n)


def as_linear(g: Conv | Linear) -> Linear:
    """A pointwise convolution as a matrix product over its pixels."""
    if isinstance(g, Linear):
        return g
    assert g.pointwise
    return Linear((g.batch, g.height, g.width), g.channels, g.out_channels)


def split_lead(lead: tuple[Dim, ...]) -> tuple[Dim, int]:
    """(images, pixels): the symbolic part of `lead`, or 1, and the product of the rest."""
    if any(isinstance(d, str) for d in lead[1:]):
        raise ValueError(f"only the first dimension may be symbolic, got {lead}")
    if lead and isinstance(lead[0], str):
        return lead[0], math.prod(d for d in lead[1:] if isinstance(d, int))
    return 1, math.prod(d for d in lead if isinstance(d, int))
