"""Pools and resize: both layouts, borders, ceil mode, and the steps that follow a pool."""

import pytest
import torch
from lowering import Cases, region

from qcompiler.graph import Node
from qcompiler.ops import (
    Add,
    AvgPool2d,
    IntSumPool2d,
    MaxPool2d,
    Quantize,
    Requantize,
    Resize,
    Window,
    const,
)  # fmt: skip
from qcompiler.types import DType, QParams

CODES = QParams((0.1,), 7, 0, 255)
WINDOWS = (
    Window((3, 3), (2, 2), ((1, 1), (1, 1))),
    Window((2, 2), (2, 2)),
    Window((3, 2), (1, 2), ((1, 0), (0, 1)), (2, 1)),
    Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), ceil=True),
    Window((13, 11)),
)


def image(cases: Cases, channels: int, last: bool, codes: bool) -> Node:
    shape = (2, 13, 11, channels) if last else (2, channels, 13, 11)
    if codes:
        return cases.integers(0, 255, *shape, quant=CODES, symbolic=True)
    # No zeros of either sign: which of the two a maximum keeps is not defined by torch.
    value = torch.randn(shape, generator=cases.rng).abs() + 0.5
    value[0, 0, 0, 0], value[1, 1, 1, 1] = float("nan"), float("inf")
    return cases.given(value, symbolic=True)


@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_pools(window: Window, last: bool) -> None:
    cases = Cases(0)
    for channels in (3, 8, 40):
        x, q = (image(cases, channels, last, codes) for codes in (False, True))
        cases.out(MaxPool2d(window, last)(x), MaxPool2d(window, last)(q))
        cases.out(IntSumPool2d(window, 7, last)(q))
        for count, divisor in ((True, None), (False, None), (True, 5)):
            cases.out(AvgPool2d(window, count, divisor, last)(x))
    cases.check()


def test_negative_zeros_survive_an_average() -> None:
    cases = Cases(1)
    x = cases.given(torch.full((1, 4, 4, 8), -0.0))
    for pads in (((0, 0), (0, 0)), ((1, 1), (1, 1))):
        cases.out(AvgPool2d(Window((2, 2), (2, 2), pads), channels_last=True)(x))
    cases.check()


def test_pool_regions() -> None:
    cases = Cases(2)
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)))
    q = image(cases, 40, True, True)
    total = IntSumPool2d(window, 7, True)(q)
    m = const(torch.rand(40, generator=cases.rng) * 0.1)
    code = Requantize(DType.UINT8, CODES)(total, m)
    cases.out(region(code, [total, code]))
    x = image(cases, 12, True, False)
    largest = MaxPool2d(window, True)(x)
    y = cases.floats(2, 7, 6, 12, symbolic=True)
    moved = Add()(largest, y)
    quantized = Quantize(DType.INT8, -128, 127)(moved, const(0.05), const(3))
    cases.out(region(quantized, [largest, moved, quantized]))
    cases.check()


@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
def test_resize(last: bool) -> None:
    cases = Cases(3)
    for channels in (3, 40):
        x, q = (image(cases, channels, last, codes) for codes in (False, True))
        for size in ((26, 22), (7, 5), (1, 1), (13, 30)):
            cases.out(Resize(size, channels_last=last)(q))
            for corners in (False, True):
                cases.out(Resize(size, True, corners, channels_last=last)(x))
        cases.out(Resize((26, 22), True, scale=(0.5, 0.51), channels_last=last)(x))
    cases.check()
