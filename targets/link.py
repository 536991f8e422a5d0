"""Object files to a shared library, with whatever linker there is."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcompiler import config


class LinkError(RuntimeError):
    """No linker was found, or it failed."""


def linker(triple: str) -> Callable[..., None]:
    """A function for TVM's `export_library`: links objects for the machine `triple`."""
    command = linker_command(triple)

    def link(output: str, objects: list[str], options: Any = None, **_: Any) -> None:
        arguments = [*command, "-shared", "-o", output, *objects]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            raise LinkError(f"{' '.join(arguments)} failed:\n{done.stderr.strip()}")

    link.output_format = "so"  # type: ignore[attr-defined]
    link.object_format = "o"  # type: ignore[attr-defined]
    return link


def linker_command(triple: str) -> list[str]:
    """$QC_LINKER, ld.lld, the lld in PyPI's ziglang, `<triple>-gcc`, and for this machine cc."""
    chosen = config.from_env().linker
    if chosen:
        return chosen.split()
    lld = shutil.which("ld.lld")
    if lld:
        return [lld]
    zig = importlib.util.find_spec("ziglang")
    if zig is not None and zig.origin is not None:
        return [str(Path(zig.origin).parent / "zig"), "ld.lld"]
    for compiler in (f"{triple}-gcc", *_native_compilers(triple)):
        path = shutil.which(compiler)
        if path:
            return [path]
    raise LinkError(
        f"no linker for {triple}: pip install 'qcompiler[cross]' (ziglang), or set QC_LINKER to a "
        f"command that takes `-shared -o OUTPUT OBJECTS`"
    )


def _native_compilers(triple: str) -> tuple[str, ...]:
    import platform

    return ("cc", "gcc", "clang") if triple.split("-")[0] == platform.machine() else ()
