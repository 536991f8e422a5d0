"""Everything that g++ makes: the two CUDA libraries, and one library for each CUDA program.

Both are kept in the cache folder under a hash of all that went into them. A file appears there
complete or not at all; two processes that need the same one make it once, or twice in vain.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from qcompiler import config
from qcompiler.atomic import locked
from qcompiler.errors import EmulationError

from .translate import translate

HERE = Path(__file__).parent
INCLUDE, ENGINE = HERE / "include", HERE / "engine"
DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
"""The names by which TVM's CUDA runtime asks for them."""
RUNTIME_SOURCE = ENGINE / "runtime_api.cpp"
COMMON = ("-std=c++17", "-fPIC", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off")
"""IEEE arithmetic as written; integers wrap, and memory has no types, as on the device."""
ENGINE_FLAGS = (*COMMON, "-O2", "-fno-omit-frame-pointer")
KERNEL_FLAGS = (
    *COMMON, "-O1", "-w", "-fvisibility=hidden", "-fstack-clash-protection",
    "-include", "qcemu/kernel.h",
)  # fmt: skip
"""Hidden: a kernel may have the name of a function of the C library. Stack clash protection: local
memory that is too large meets the page below its stack."""
CHECKED = (
    "-fsanitize=thread", "-fsanitize=bounds,float-cast-overflow", "-fno-sanitize-recover=bounds",
    "-fno-tree-sra",
)  # fmt: skip
"""Makes g++ call the engine at every load and store, and where an index leaves its array or a float
the range of an integer; vectors are loaded whole, as on a device. The runtime libraries of these
options are not linked."""
INITIALISED = ("-ftrivial-auto-var-init=pattern",)
"""Of CHECKED, from g++ 12 on: a local variable that nobody has set holds bytes no test expects."""
KEPT_PROGRAMS = 400
"""Compiled programs in the cache; some 50 KB each."""
KEPT_SECONDS = 24 * 3600
"""A program used within this time is never removed: a process may be about to open it."""

UNKNOWN = (
    r"\W(\w+)\W (?:was|has) not (?:been )?declared",
    r"\W(\w+)\W does not name a type",
    r"(\S+): No such file or directory",
)
"""What g++ says of names that no header of include/ has."""
SHOWN = 160
"""Characters of a line of CUDA text that a message shows."""


def compiler() -> str | None:
    """The path of g++, if there is one."""
    return shutil.which("g++")


def libraries() -> Path:
    """The folder with libcuda.so.1 and libcudart.so.13, built on first use. About 8 s, then kept.

    Raises EmulationError when g++ is missing or fails.
    """
    folder = config.cache_folder() / "cuda-emulator" / _engine_key()
    if (folder / RUNTIME).exists():
        return folder
    with locked(folder.parent):
        if not (folder / RUNTIME).exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as work:
                _build_libraries(Path(work))
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(_moved(Path(work)), folder)
    return folder


def program(source: str, checks: bool) -> Path:
    """The shared library of a CUDA program; `checks`: its loads and stores are looked at.

    Raises EmulationError naming what of the text is not known.
    """
    flags = (*KERNEL_FLAGS, *(checked() if checks else ()))
    translator = (p.read_text() for p in sorted(HERE.glob("*.py")))
    key = _digest(_engine_key(), *translator, *flags, source)
    folder = config.cache_folder() / "cuda-emulator" / "programs"
    library = folder / f"{key}.so"
    if library.exists():
        library.touch()
        return library
    folder.mkdir(parents=True, exist_ok=True)
    text = translate(source)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
        cpp, made = Path(work) / "kernel.cpp", Path(work) / "kernel.so"
        cpp.write_text(text)
        _compile_program(cpp, made, flags, source)
        os.replace(made, library)
    _prune(folder)
    return library


def checked() -> tuple[str, ...]:
    """What a program is compiled with whose loads and stores are looked at."""
    return (*CHECKED, *(INITIALISED if int(_version().partition(".")[0]) >= 12 else ()))


def _compile_program(cpp: Path, made: Path, flags: tuple[str, ...], source: str) -> None:
    done = _run([*flags, f"-I{INCLUDE}", "-c", str(cpp), "-o", f"{cpp}.o"])
    if done.returncode:
        raise EmulationError(explain(done.stderr, source))
    # Linked apart: with -fsanitize g++ would link a runtime library of its own.
    driver = str(libraries() / DRIVER)
    done = _run(["-shared", f"{cpp}.o", driver, "-Wl,-z,defs", "-lm", "-o", str(made)])
    if done.returncode:
        raise EmulationError(explain_link(done.stderr, source))


def explain(errors: str, source: str) -> str:
    """What to tell of g++'s errors: the first, with its line of the CUDA text."""
    first = re.search(r"kernel\.cu:(\d+):\d+: (?:fatal )?error: (.*)", errors)
    if not first:
        return f"g++ cannot compile an emulated program: {errors.strip()[:2000]}"
    number, message = int(first[1]), first[2]
    lines = source.splitlines()
    line = lines[number - 1] if number <= len(lines) else ""
    unknown = next(filter(None, (re.search(pattern, message) for pattern in UNKNOWN)), None)
    if unknown:
        return _unknown(unknown[1], number, line)
    return f"g++ refuses line {number} of the CUDA text: {message} ({line.strip()[:SHOWN]})"


def explain_link(errors: str, source: str) -> str:
    """What to tell of names that are declared somewhere and are nowhere, such as glibc's __expf."""
    name = re.search(r"undefined reference to \W(\w+)", errors)
    if not name:
        return f"g++ cannot link an emulated program: {errors.strip()[:2000]}"
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(rf"\b{name[1]}\b", line):
            return _unknown(name[1], number, line)
    return f"the emulator does not know `{name[1]}`"


def _unknown(name: str, number: int, line: str) -> str:
    shown = line.strip()[:SHOWN]
    return f"the emulator does not know `{name}` (line {number} of the CUDA text: {shown})"


def _build_libraries(work: Path) -> None:
    flags = [*ENGINE_FLAGS, f"-I{INCLUDE}", f"-I{ENGINE}", "-shared"]
    sources = sorted(str(p) for p in ENGINE.glob("*.cpp") if p != RUNTIME_SOURCE)
    driver, runtime = work / DRIVER, work / RUNTIME
    version = f"-Wl,--version-script={ENGINE / 'cudart.map'}"
    for arguments in (
        [*sources, f"-Wl,-soname,{DRIVER}", "-o", str(driver), "-ldl"],
        [str(RUNTIME_SOURCE), str(driver), f"-Wl,-soname,{RUNTIME}", version, "-o", str(runtime)],
    ):
        done = _run([*flags, *arguments])
        if done.returncode:
            raise EmulationError(f"g++ cannot build the CUDA emulator: {done.stderr[:2000]}")


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    found = compiler()
    if found is None:
        raise EmulationError("the CUDA emulator needs g++, which is not on PATH")
    return subprocess.run([found, *arguments], capture_output=True, text=True)


def _engine_key() -> str:
    files = [*INCLUDE.rglob("*.h"), *ENGINE.glob("*.*")]
    texts = [part for f in sorted(files) for part in (f.name, f.read_text())]
    return _digest(platform.machine(), _version(), *ENGINE_FLAGS, *texts)


def _version() -> str:
    return _run(["-dumpfullversion"]).stdout


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def _moved(work: Path) -> Path:
    """The folder under another name, so that its owner does not remove it."""
    moved = work.with_name(work.name + "-done")
    os.rename(work, moved)
    work.mkdir()
    return moved


def _prune(folder: Path) -> None:
    """Removes the programs that were not used for longest, when there are too many."""
    newest_first = sorted(folder.glob("*.so"), key=lambda p: -p.stat().st_mtime)
    for old in newest_first[KEPT_PROGRAMS:]:
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            old.unlink(missing_ok=True)
