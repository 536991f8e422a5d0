"""Faults planted in the text of a product's kernel: the emulator must catch every one."""

from __future__ import annotations

import re
from collections.abc import Callable

import lowering
import pytest
import tvm_ffi
from lowering import Cases, region
from test_lower_products import OUT, X, bias, codes, multiplier

from qcompiler.context import Context
from qcompiler.ops import Abs, IntConv2d, Neg, Requantize
from qcompiler.passes.pack import packed
from qcompiler.runtime.device import COMPILE
from qcompiler.targets import get
from qcompiler.targets.emulation import cuda
from qcompiler.types import DType

TARGET = get("cuda-sm80")
SETTINGS = (("forward", "lazy"), ("reverse", "eager"), (5, "lazy"), (6, "eager"))


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def unguarded(text: str) -> str:
    """The last condition, that of the stores, always holds."""
    start = text.rindex("if (") + 3
    depth, end = 0, start
    while True:
        depth += (text[end] == "(") - (text[end] == ")")
        end += 1
        if depth == 0:
            return f"{text[:start]}(true){text[end:]}"


def without_last_barrier(text: str) -> str:
    """The loop's only barrier is gone."""
    return re.sub(r"__syncthreads\(\);", ";", text)


FAULTS = {
    "a dropped barrier": without_last_barrier,
    "a wait for one copy less": replaced("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    "two swapped registers": replaced("{%4, %5, %6, %7}", "{%5, %4, %6, %7}"),
    "half of the weights twice": replaced("{%8, %9}", "{%8, %8}"),
    "a missing guard": unguarded,
    "codes that are not flipped": replaced("^ (uint)2155905152", "^ (uint)0"),
    "a wrong code outside the image": replaced("= 117901063;", "= 0;"),  # 7, four times
}


@pytest.fixture
def case(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Cases:
    """A padded convolution of several steps, with edges."""
    if not cuda.started():
        pytest.skip("faults are for the emulator")
    monkeypatch.setattr(lowering, "TARGET", TARGET)
    cases = Cases(0)
    x = cases.integers(0, 255, 2, 7, 9, 80, quant=X)
    conv = IntConv2d((1, 1), ((1, 1), (1, 1)), (1, 1), 1, True, zero_point=7)
    acc = conv(x, codes(cases, 40, 80, 3, 3), bias(cases, 40))
    code = Requantize(DType.UINT8, OUT)(acc, multiplier(cases, 40))
    cases.out(packed(region(code, [acc, code]), Context(TARGET)))
    return cases


def caught(case: Cases, change: Callable[[str], str]) -> str:
    """How the changed kernel fails, or that it gives something else, in one of the settings."""
    keep = tvm_ffi.get_global_func(COMPILE)
    changed: list[bool] = []

    def answer(source: object) -> bytes:
        text = source.decode() if isinstance(source, bytes) else str(source)
        changed.append(change(text) != text)
        return bytes(keep(change(text)))

    try:
        for order, copies in SETTINGS:
            cuda.start(order=order, copies=copies)
            tvm_ffi.register_global_func(COMPILE, answer, override=True)
            try:
                case.check()
            except (AssertionError, RuntimeError) as e:
                assert changed and all(changed)
                return str(e)
    finally:
        cuda.start()
    assert changed and all(changed)
    return ""


def test_the_kernel_itself_holds(case: Cases) -> None:
    assert caught(case, lambda text: text + "\n") == ""


def test_an_elementwise_kernel_without_its_guard_is_caught(gpu: None, monkeypatch) -> None:
    """Though it reads another kernel's result, which a pool gives in pages of 4096 bytes."""
    if not cuda.started():
        pytest.skip("faults are for the emulator")
    monkeypatch.setattr(lowering, "TARGET", TARGET)
    cases = Cases(0)
    cases.out(Neg()(Abs()(cases.floats(7, 9))))
    assert caught(cases, lambda text: text + "\n") == ""
    assert "kernel elementwise1_kernel" in caught(cases, unguarded)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(case: Cases, fault: str) -> None:
    reason = caught(case, FAULTS[fault])
    assert "expected" in reason or "kernel product_kernel" in reason, reason  # and not g++'s
