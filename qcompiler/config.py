"""Every QC_* environment variable, typed, in one place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """debug: QC_DEBUG, 0..4. print: QC_PRINT, `all`, `changed` or a pass. dump: QC_DUMP, a folder.
    check: QC_CHECK, compare numbers after each pass. bisect: QC_BISECT, run the first N optional
    passes only (-1: all). repro: QC_REPRO, a folder for what reproduces a failure.
    linker: QC_LINKER, the linker for cross builds. nvcc: QC_NVCC, the compiler of CUDA kernels;
    empty: they stay text. hidden: QC_CPUID_HIDE, the features that `bench --like` hides from this
    process, as its library reads them."""

    debug: int = 0
    print: str = ""
    dump: Path | None = None
    check: bool = False
    bisect: int = -1
    repro: Path | None = None
    linker: str = ""
    nvcc: str = "nvcc"
    hidden: str = ""


def from_env() -> Config:
    """The configuration the environment asks for. Raises ValueError on a malformed number."""
    get = os.environ.get
    return Config(
        debug=_number("QC_DEBUG", 0),
        print=get("QC_PRINT", ""),
        dump=_folder("QC_DUMP"),
        check=_number("QC_CHECK", 0) > 0,
        bisect=_number("QC_BISECT", -1),
        repro=_folder("QC_REPRO"),
        linker=get("QC_LINKER", ""),
        nvcc=get("QC_NVCC", "nvcc"),
        hidden=get("QC_CPUID_HIDE", ""),
    )


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a child process gets: the variables of this one, and more."""
    return {**os.environ, **more}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.lstrip("-").isdigit():
        raise ValueError(f"{name}: expected a whole number, got {text!r}")
    return int(text)


def _folder(name: str) -> Path | None:
    """Raises ValueError for a folder that can neither be written nor made."""
    text = os.environ.get(name, "")
    if not text:
        return None
    path = Path(text)
    there = next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), Path("/"))
    if not there.is_dir():
        raise ValueError(f"{name}: expected a folder, got {text!r}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: the folder {text!r} cannot be written: no access to {there}")
    return path


def folder_for(name: str, path: Path) -> Path:
    """The folder of that variable, made where it is missing. Raises OSError naming both."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        reason = f"{name}: cannot make this folder: {e.strerror}"
        raise OSError(e.errno, reason, str(path)) from None
    return path


def cache_folder() -> Path:
    """Where compiled things that can be made again are kept: $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "qcompiler"


def default_variable(name: str, value: str) -> None:
    """An environment variable for a library, unless the user has set it."""
    os.environ.setdefault(name, value)


@contextmanager
def variable_during(name: str, value: str) -> Iterator[None]:
    """An environment variable for what runs inside; child processes started later lack it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
