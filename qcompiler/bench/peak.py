"""The peak of this machine's cores: sequences of instructions, measured by a small C program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_name("peak.c")
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 60.0
"""How long it may take; it takes less than one."""


@dataclass(frozen=True)
class Sequence:
    """Instructions of peak.c. needs: CPU features, by their names in /proc/cpuinfo."""

    name: str
    what: str
    integer: bool
    needs: frozenset[str]


SEQUENCES = (
    Sequence("fma-256", "vfmadd231ps ymm", False, frozenset({"fma", "avx2"})),
    Sequence("fma-512", "vfmadd231ps zmm", False, frozenset({"avx512f"})),
    Sequence("wide-256", "vpmaddwd, vpaddd", True, frozenset({"avx2"})),
    Sequence("pairs-256", "vpmaddubsw, vpmaddwd, vpaddd", True, frozenset({"avx2"})),
    Sequence("fours-256", "4 vpmaddubsw, 3 vpaddw, vpmaddwd, vpaddd", True, frozenset({"avx2"})),
    Sequence("vnni-256", "vpdpbusd ymm", True, frozenset({"avx512_vnni", "avx512vl"})),
    Sequence("vnni-512", "vpdpbusd zmm", True, frozenset({"avx512_vnni", "avx512f"})),
)


@dataclass(frozen=True)
class Peak:
    """What one core reaches. gmacs: 10^9 multiply-adds a second."""

    what: str
    integer: bool
    gmacs: float


def peaks(features: Collection[str]) -> tuple[Peak | None, Peak | None]:
    """The highest of float32 and of integer products, with these CPU features alone.

    None where it cannot be measured: without a C compiler, or on another kind of machine.
    """
    usable = {s.name: s for s in SEQUENCES if s.needs <= set(features)}
    found = [Peak(usable[n].what, usable[n].integer, g) for n, g in _measured([*usable]).items()]
    highest = [
        max((p for p in found if p.integer is kind), key=lambda p: p.gmacs, default=None)
        for kind in (False, True)
    ]
    return highest[0], highest[1]


def _measured(names: list[str]) -> dict[str, float]:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or not names:
        return {}
    with TemporaryDirectory(prefix="qcompiler-peak-") as folder:
        program = str(Path(folder) / "peak")
        for command in ([compiler, "-O2", str(SOURCE), "-o", program], [program, *names]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if done.returncode:
                return {}
    return {name: float(gmacs) for name, gmacs in map(str.split, done.stdout.splitlines())}
