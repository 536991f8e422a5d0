"""Programs run as on a lesser x86 machine: CPUID and /proc/cpuinfo tell them of fewer features.

So that ours and every peer take the code they would take there, at this machine's clock and caches.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompiler.bench.peak import COMPILERS
from qcompiler.config import environment
from qcompiler.machine import CPUINFO, FLAGS, features
from qcompiler.runtime.errors import MachineError

SOURCE = Path(__file__).with_suffix(".c")
UNUSABLE = 70

# Intel, Software Developer's Manual, volume 2A, CPUID, leaf 7: the bits of a register.
BITS: Mapping[str, tuple[str, int]] = {
    "avx512f": ("7.0.b", 16), "avx512dq": ("7.0.b", 17), "avx512ifma": ("7.0.b", 21),
    "avx512cd": ("7.0.b", 28), "avx512bw": ("7.0.b", 30), "avx512vl": ("7.0.b", 31),
    "avx512vbmi": ("7.0.c", 1), "avx512_vbmi2": ("7.0.c", 6), "avx512_vnni": ("7.0.c", 11),
    "avx512_bitalg": ("7.0.c", 12), "avx512_vpopcntdq": ("7.0.c", 14),
    "avx512_vp2intersect": ("7.0.d", 8), "amx_bf16": ("7.0.d", 22), "avx512_fp16": ("7.0.d", 23),
    "amx_tile": ("7.0.d", 24), "amx_int8": ("7.0.d", 25),
    "avx_vnni": ("7.1.a", 4), "avx512_bf16": ("7.1.a", 5), "amx_fp16": ("7.1.a", 21),
    "avx_ifma": ("7.1.a", 23), "avx_vnni_int8": ("7.1.d", 4), "avx_ne_convert": ("7.1.d", 5),
    "amx_complex": ("7.1.d", 8), "avx_vnni_int16": ("7.1.d", 10), "avx10": ("7.1.d", 19),
}  # fmt: skip
"""What can be hidden, by Linux' names in /proc/cpuinfo."""


def hidden(wanted: Collection[str]) -> frozenset[str]:
    """The features of BITS beyond the wanted."""
    return frozenset(BITS) - set(wanted)


def run(command: Sequence[str], wanted: Collection[str]) -> int:
    """The command's exit status, run where of the features in BITS it sees the wanted only.

    Raises MachineError where this machine lacks one of the wanted or a C compiler, or lets no
    program change its own code.
    """
    missing = sorted(set(wanted) - features())
    if missing:
        raise MachineError(f"this machine cannot pose as one with {', '.join(missing)}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise MachineError("hiding CPU features needs a C compiler: install gcc or clang")
    with TemporaryDirectory(prefix="qcompiler-disguise-") as folder:
        library, told = Path(folder) / "disguise.so", Path(folder) / "cpuinfo"
        build = [compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library), "-ldl"]
        done = subprocess.run(build, capture_output=True, text=True)
        if done.returncode:
            raise MachineError(f"{' '.join(build)} failed:\n{done.stderr}")
        unwanted = hidden(wanted)
        told.write_text(without(CPUINFO.read_text(), unwanted))
        worn = {"QC_CPUID_HIDE": words(unwanted), "QC_CPUINFO": str(told)}
        worn["LD_AUDIT"] = worn["LD_PRELOAD"] = str(library)
        status = subprocess.call(command, env=environment(worn))
        if status == UNUSABLE:
            raise MachineError(
                "this system lets no program change its own code (SELinux execmod?): "
                "the CPU's features cannot be hidden"
            )
        return status


def words(features: Collection[str]) -> str:
    """The masks to hide these features, as the C library reads them."""
    masks: dict[str, int] = {}
    for register, bit in (BITS[f] for f in features):
        masks[register] = masks.get(register, 0) | 1 << bit
    return " ".join(f"{register}={mask:x}" for register, mask in sorted(masks.items()))


def without(cpuinfo: str, features: Collection[str]) -> str:
    """The text of /proc/cpuinfo, its lines of flags less these."""
    lines = cpuinfo.split("\n")
    return "\n".join(_less(line, features) if line.startswith(FLAGS) else line for line in lines)


def _less(line: str, features: Collection[str]) -> str:
    return " ".join(word for word in line.split(" ") if word not in features)
