"""A program in disguise sees the features of a lesser machine, and still faults as it would."""

import subprocess
import sys

import pytest

from qcompiler import targets
from qcompiler.bench import disguise
from qcompiler.machine import features
from qcompiler.runtime.errors import MachineError

V3 = targets.get("x86-64-v3").features
CPUINFO = "processor\t: 0\nflags\t\t: avx2 avx512f amx_int8 fma\nvmx flags\t: avx512f\n"


def test_words_name_each_register_once() -> None:
    assert disguise.words({"avx512f", "avx512vl", "avx_vnni"}) == "7.0.b=80010000 7.1.a=10"


def test_only_what_is_wanted_of_what_can_be_hidden_stays() -> None:
    left = disguise.hidden({"avx2", "avx512_vnni"})
    assert "avx512_vnni" not in left and "amx_int8" in left and "avx2" not in left


def test_cpuinfo_loses_flags_and_nothing_else() -> None:
    told = disguise.without(CPUINFO, {"avx512f", "amx_int8"})
    assert told == "processor\t: 0\nflags\t\t: avx2 fma\nvmx flags\t: avx512f\n"


def test_a_machine_cannot_pose_as_a_greater_one() -> None:
    with pytest.raises(MachineError, match="cannot pose as one with no-such-feature"):
        disguise.run(["true"], {"no-such-feature"})


avx2 = pytest.mark.skipif(not features().issuperset(V3), reason="this machine has no AVX2")


@avx2
def test_every_library_sees_the_lesser_machine() -> None:
    program = (
        "import torch, tvm\n"
        "from qcompiler import targets\n"
        "assert torch.backends.cpu.get_cpu_capability() == 'AVX2', 1\n"
        "assert targets.native().name == 'x86-64-v3', 2\n"
    )
    assert disguise.run([sys.executable, "-c", program], V3) == 0


@avx2
def test_a_fault_of_the_program_ends_it() -> None:
    program = [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]
    bare = subprocess.call(program, stderr=subprocess.DEVNULL)
    assert disguise.run(program, V3) == bare < 0
