"""This machine: the CPU features it has and the cores it may use, from what Linux says."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CPUS = Path("/sys/devices/system/cpu")
FLAG_LINES = ("flags", "Features")  # as x86 and ARM kernels head them


def features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The CPU flags every core reports. LLVM's own detection names CPUs a hypervisor masks."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    heads = [line.partition(":") for line in lines]
    flags = [set(rest.split()) for head, _, rest in heads if head.strip() in FLAG_LINES]
    return frozenset(set.intersection(*flags)) if flags else frozenset()


def cores(cpus: Path = CPUS) -> int:
    """How many physical cores this process may run on: two threads of one core share its units."""
    allowed = os.sched_getaffinity(0)
    siblings = {_siblings(cpus / f"cpu{k}") or str(k) for k in allowed}
    return max(len(siblings), 1)


def _siblings(cpu: Path) -> str:
    path = cpu / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else ""
