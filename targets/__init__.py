"""The machines qcompiler builds for, one file each."""

if __name__ != "qcompiler.targets":
    raise ImportError("import qcompiler.targets, not targets: a second copy breaks isinstance")

import sys

from qcompiler.errors import MissingTorch, has_torch

if not has_torch():
    raise MissingTorch("qcompiler.targets")

if getattr(sys.modules.get("tvm.base"), "_RUNTIME_ONLY", False):
    raise ImportError(
        "this process has loaded TVM without its compiler (TVM_USE_RUNTIME_LIB is set, or torch "
        "was installed after qcompiler.load); compile in another process"
    )

from types import ModuleType

from qcompiler.machine import features as host_features

from .arm import ARMV8_2_DOTPROD, ARMV8_6_I8MM, ARMV8_A
from .base import InputsError, Target, require_buildable
from .cuda import CUDA_SM80, CUDA_SM90
from .link import LinkError
from .lower import LowerError
from .x86 import X86_64_AVX512VNNI, X86_64_AVXVNNI, X86_64_V3, X86_64_V4

__all__ = [
    "DONE", "InputsError", "LinkError", "LowerError", "Target", "TargetError", "get",
    "host_features", "names", "native", "require_buildable",
]  # fmt: skip

DONE: tuple[Target, ...] = (
    X86_64_V3, X86_64_V4, X86_64_AVXVNNI, X86_64_AVX512VNNI, ARMV8_A, ARMV8_2_DOTPROD, ARMV8_6_I8MM,
    CUDA_SM80, CUDA_SM90,
)  # fmt: skip
"""Every finished target; of one architecture, the most capable last."""


class TargetError(ValueError):
    """There is no such target, or none that this machine can run."""


def names() -> tuple[str, ...]:
    """The targets that graphs can be built for, and `native`."""
    return ("native", *(t.name for t in DONE))


def get(name: str | Target) -> Target:
    """The target of that name; `native` is the best one this machine can run.

    A Target value (one of your own) is itself.
    """
    if isinstance(name, Target):
        return name
    if name == "native":
        return native()
    for target in DONE:
        if target.name == name:
            return target
    raise TargetError(f"there is no target {name!r}; choose one of {', '.join(names())}")


def native(features: frozenset[str] | None = None) -> Target:
    """The best target whose features a machine has (this one unless given)."""
    here = host_features() if features is None else features
    fitting = [t for t in DONE if here.issuperset(t.features)]
    if not fitting:
        nearest = min(DONE, key=lambda t: len(set(t.features) - here))
        lacking = sorted(set(nearest.features) - here)
        raise TargetError(f"no target runs here: {nearest.name} needs {', '.join(lacking)}")
    return fitting[-1]


class _Callable(ModuleType):
    """The package itself answers `qc.targets()`, for it has the name of that function."""

    def __call__(self) -> tuple[str, ...]:
        return names()


sys.modules[__name__].__class__ = _Callable
