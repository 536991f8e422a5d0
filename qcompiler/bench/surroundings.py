"""What times depend on beside the programs: the machine and the versions of what ran."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qcompiler import __version__
from qcompiler.config import from_env
from qcompiler.machine import CPUINFO, features, logical_cpus

PACKAGES = ("torch", "apache-tvm", "onnxruntime", "onnx", "openvino", "nncf")
TELLING = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU features that decide how fast products are."""


def machine() -> str:
    """One line: the processor, how many CPUs, and what it has for products."""
    here = features()
    telling = ", ".join(f for f in TELLING if f in here) or "no instructions for products"
    count = logical_cpus()
    hidden = " (its other instructions hidden)" if from_env().hidden else ""
    return f"{processor()}, {count} CPU{'s' * (count > 1)}: {telling}{hidden}"


def processor(cpuinfo: Path = CPUINFO) -> str:
    """As Linux names it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    rows = [line.partition(":") for line in lines if line.startswith("model name")]
    return rows[0][2].strip() if rows else "unknown processor"


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {"qcompiler": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
