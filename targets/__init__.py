"""The machines qcompiler builds for, one file each."""

if __name__ != "qcompiler.targets":
    raise ImportError("import qcompiler.targets, not targets: a second copy breaks isinstance")

from pathlib import Path

from .base import Target
from .x86 import X86_64_V3

DONE: tuple[Target, ...] = (X86_64_V3,)
"""Every finished target; of one architecture, the most capable last."""

PLANNED = (
    "x86-64-v4", "x86-64-avxvnni", "x86-64-avx512vnni", "armv8-a", "armv8.2-dotprod",
    "armv8.6-i8mm", "cuda-sm80", "cuda-sm90",
)  # fmt: skip


class TargetError(ValueError):
    """There is no such target, or not yet, or this machine cannot run it."""


def names() -> tuple[str, ...]:
    """The targets that graphs can be built for, and `native`."""
    return ("native", *(t.name for t in DONE))


def get(name: str) -> Target:
    """The target of that name; `native` is the best one this machine can run."""
    if name == "native":
        return native()
    for target in DONE:
        if target.name == name:
            return target
    if name in PLANNED:
        raise TargetError(f"target {name} is not done yet; done are {', '.join(names())}")
    raise TargetError(f"there is no target {name!r}; choose one of {', '.join(names())}")


def native(features: frozenset[str] | None = None) -> Target:
    """The best done target whose features a machine has (this one unless given)."""
    here = host_features() if features is None else features
    fitting = [t for t in DONE if here.issuperset(t.features)]
    if not fitting:
        lacking = sorted(set(DONE[0].features) - here)
        raise TargetError(f"no done target runs here: {DONE[0].name} needs {', '.join(lacking)}")
    return fitting[-1]


def host_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU flags every core reports. LLVM's own detection names CPUs a hypervisor masks."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = [line.partition(":") for line in lines]
    flags = [set(value.split()) for name, _, value in fields if name.strip() in _FLAGS]
    return frozenset(set.intersection(*flags) if flags else ())


_FLAGS = ("flags", "Features")
