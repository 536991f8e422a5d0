"""Planted faults in a pipelined GEMM: each is named with checks, and shows in numbers without."""

import cuda_gemm
import pytest
from emulated import SETTINGS

from qcompiler.targets.emulation import cuda

SIZES = (72, 50, 160)
NAMES = {
    "dropped barrier": "race|cp.async may still|nobody has written",
    "wrong wait count": "cp.async may still",
    "missing guard of a read": "read of 16 bytes",
    "missing guard of a write": "write of 4 bytes",
    "late copy": "race|cp.async may still",
}


def outcome(program: cuda.Program) -> str:
    try:
        return "right" if cuda_gemm.run(program, *SIZES) else "wrong"
    except cuda.EmulationError as e:
        return str(e)


@pytest.mark.parametrize("checks", [True, False])
def test_the_right_kernel_is_right_in_every_order(configure, checks: bool) -> None:
    configure(checks=checks)
    program = cuda.Program(cuda_gemm.TEXT)
    for order, copies in SETTINGS:
        configure(order, copies, checks)
        assert outcome(program) == "right"


@pytest.mark.parametrize("fault", NAMES)
def test_checks_name_the_fault_in_every_order(configure, fault: str) -> None:
    import re

    program = cuda.Program(cuda_gemm.planted(fault))
    for order, copies in SETTINGS:
        configure(order, copies)
        told = outcome(program)
        assert re.search(NAMES[fault], told), (order, copies, told)
        assert "kernel gemm, block (" in told


@pytest.mark.parametrize("fault", cuda_gemm.FAULTS)
def test_faults_show_without_checks(configure, fault: str) -> None:
    configure(checks=False)
    program = cuda.Program(cuda_gemm.planted(fault))
    outcomes = []
    for order, copies in SETTINGS:
        configure(order, copies, checks=False)
        outcomes.append(outcome(program))
    assert set(outcomes) != {"right"}


def test_a_swapped_register_is_wrong_with_checks(configure) -> None:
    assert outcome(cuda.Program(cuda_gemm.planted("swapped register"))) == "wrong"
