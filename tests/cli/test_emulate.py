"""--emulate: programs of other machines run and verify here, or a message says why not."""

import subprocess
import sys

import numpy as np
import pytest

import qcompiler as qc
from qcompiler.targets.emulation import EmulationError, arm, cuda


def test_an_arm_program_runs_and_verifies(made, cli) -> None:
    reason = arm.missing()
    if reason is None:
        try:
            arm.userland()
        except EmulationError as e:
            reason = str(e)
    if reason is not None:
        pytest.skip(reason)
    data = made / "data.npz"
    arguments = ("compile", "shop:net", "--target", "armv8.2-dotprod", "--calibration", data)
    assert cli(*arguments, "-o", "a.qcm").code == 0
    assert cli("run", "a.qcm", made / "x.npz", "-o", "y.npz").code == 1
    assert cli("run", "a.qcm", made / "x.npz", "-o", "y.npz", "--emulate").code == 0
    with np.load("y.npz") as there, np.load(made / "x.npz") as x:
        here = qc.load(made / "m.qcm")(x["input"])
        (name,) = there.files
        # Not the same graph: sdot needs no proof of 16-bit sums, so weights have other scales.
        assert np.allclose(there[name], here, atol=0.02)
    done = cli("verify", "a.qcm", "--emulate")
    assert done.code == 0 and done.out.endswith("verified\n")


def test_a_cuda_program_runs_and_verifies(made, cli, monkeypatch) -> None:
    """The CUDA emulator is a device of this process from then on."""
    reason = cuda.available()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("QC_NVCC", "")
    data = made / "data.npz"
    arguments = ("compile", "shop:net", "--target", "cuda-sm80", "--calibration", data)
    assert cli(*arguments, "-o", "g.qcm").code == 0
    assert cli("run", "g.qcm", made / "x.npz", "-o", "y.npz", "--emulate").code == 0
    with np.load("y.npz") as there, np.load(made / "x.npz") as x:
        here = qc.load(made / "m.qcm")(x["input"])
        (name,) = there.files
        assert np.allclose(there[name], here, atol=0.02)
    done = cli("verify", "g.qcm", "--emulate")
    assert done.code == 0 and done.out.endswith("verified\n")


WATCHED = """
import ctypes, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "tvm":  # its import loads whatever driver the system has
            assert ctypes.CDLL("libcuda.so.1", os.RTLD_NOLOAD).qcemu_configure
            print("the emulator was first")
sys.meta_path.insert(0, Watch())
from qcompiler.cli import main
main(sys.argv[1:])
"""


def test_the_emulator_comes_before_a_real_driver(made, cli, monkeypatch) -> None:
    reason = cuda.available()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("QC_NVCC", "")
    compiled = ("compile", "shop:net", "--target", "cuda-sm80", "--calibration", made / "data.npz")
    assert cli(*compiled, "-o", "g.qcm").code == 0
    run = ("run", "g.qcm", str(made / "x.npz"), "-o", "y.npz", "--emulate")
    done = subprocess.run([sys.executable, "-c", WATCHED, *run], capture_output=True, text=True)
    assert done.returncode == 0 and "the emulator was first" in done.stdout, done.stderr


def test_what_is_not_emulated_says_so(made, cli, monkeypatch) -> None:
    done = cli("run", made / "m.qcm", made / "x.npz", "-o", "y.npz", "--emulate")
    assert done.code == 1
    assert done.err == "error: x86-64-v3 is not emulated: run the model without --emulate\n"
    cli("compile", "shop:sums", "--recipe", "float32", "--target", "armv8-a", "-o", "a.qcm")
    monkeypatch.setattr(arm, "missing", lambda: "apt-get is not on PATH")
    done = cli("verify", "a.qcm", "--emulate")
    assert done.code == 1
    assert done.err == "error: armv8-a cannot be emulated here: apt-get is not on PATH\n"
