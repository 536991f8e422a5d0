"""This machine: the CPU features it has and the cores it may use, from what Linux says."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CPUS = Path("/sys/devices/system/cpu")
FLAGS = "flags"  # how x86 kernels head the line

AT_HWCAP, AT_HWCAP2 = 16, 26  # getauxval(3)
# Of Linux' arch/arm64/include/uapi/asm/hwcap.h, by the names in /proc/cpuinfo.
ARM_FLAGS: Mapping[str, tuple[int, int]] = {
    "asimd": (AT_HWCAP, 1), "asimddp": (AT_HWCAP, 20), "i8mm": (AT_HWCAP2, 13),
}  # fmt: skip


def features() -> frozenset[str]:
    """The CPU flags that code may use here. LLVM's own detection names CPUs a hypervisor masks."""
    if platform.machine() == "aarch64":
        return arm_features(ctypes.CDLL(None).getauxval)
    return x86_features()


def x86_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The flags that every core reports."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    heads = [line.partition(":") for line in lines]
    flags = [set(rest.split()) for head, _, rest in heads if head.strip() == FLAGS]
    return frozenset(set.intersection(*flags)) if flags else frozenset()


def arm_features(capabilities: Callable[[int], int]) -> frozenset[str]:
    """What the kernel tells each process, an emulated one too: there /proc/cpuinfo is the host's.

    capabilities: the words of the auxiliary vector, by their number.
    """
    return frozenset(f for f, (word, bit) in ARM_FLAGS.items() if capabilities(word) >> bit & 1)


def cores(cpus: Path = CPUS) -> int:
    """How many physical cores this process may run on: two threads of one core share its units."""
    allowed = os.sched_getaffinity(0)
    siblings = {_siblings(cpus / f"cpu{k}") or str(k) for k in allowed}
    return max(len(siblings), 1)


def logical_cpus() -> int:
    """How many CPUs, as Linux counts them, this process may run on."""
    return len(os.sched_getaffinity(0))


def threads_problem(count: object) -> str | None:
    """Why a program cannot run with so many threads; None when it can.

    More threads than CPUs wait for each other at every kernel, and very many end the process.
    """
    limit = logical_cpus()
    if isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= limit:
        return None
    return (
        f"expected a whole number from 1 to {limit}, the logical CPUs this process may use, "
        f"got {count!r}"
    )


def _siblings(cpu: Path) -> str:
    path = cpu / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else ""
