"""NVIDIA's compiler, where it is installed: kernels as text to machine code."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from qcompiler.config import from_env

FLAGS = ("-O3", "-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
"""Arithmetic as the law has it: nothing contracted, denormals kept, IEEE division and root."""

TEXT_FOLLOWS = b"\nqcompiler: CUDA text follows\n"
"""As in targets/emulation/cuda/engine/driver.cpp."""


class NvccError(RuntimeError):
    """There is no nvcc, or it failed."""

    @property
    def first(self) -> str:
        """The first line that tells of an error, or the first of all."""
        lines = [line.strip() for line in str(self).splitlines()]
        return next((line for line in lines[1:] if "error" in line.lower()), lines[0])


def found() -> bool:
    """Whether there is one: $QC_NVCC, or nvcc on PATH."""
    return shutil.which(from_env().nvcc) is not None


def fatbin(source: str, arch: str, *flags: str) -> bytes:
    """Machine code for one architecture (`sm_80`). Raises NvccError."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        text, code = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        text.write_text(source)
        compile_to(code, text, "-fatbin", f"-arch={arch}", *flags)
        return code.read_bytes()


def compile_to(output: Path, text: Path, *flags: str) -> str:
    """Runs nvcc; what it says (with `-Xptxas -v`: registers and spills). Raises NvccError."""
    command = [from_env().nvcc, *FLAGS, *flags, "-o", str(output), str(text)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as e:
        raise NvccError(f"{command[0]} cannot be run: {e.strerror}; set QC_NVCC") from None
    if done.returncode:
        raise NvccError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout + done.stderr


def with_text(code: bytes, text: bytes) -> bytes:
    """Machine code (a fat binary or cubin) followed by its CUDA text.

    A GPU's driver reads the code and stops at its end; an emulator reads the text.
    """
    return code + TEXT_FOLLOWS + text + b"\0"
