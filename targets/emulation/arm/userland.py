"""A folder with a Python for arm64, made once: Debian's packages and PyPI's wheels, unpacked.

Nothing of the host changes: apt works on a state of its own, nothing is configured or installed,
and no root is needed. What the folder holds runs under qemu's user-mode emulation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcompiler import config
from qcompiler.atomic import locked
from qcompiler.errors import EmulationError

LAYOUT = "1"
"""Counts the changes to what such a folder holds."""
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgcc-s1", "zlib1g")
WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "typing_extensions")
"""All that loading and running a model needs, in the versions installed here."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
UNNEEDED = ("libtvm_compiler.so", "libtvm_runtime_cuda.so")
"""Of TVM's wheel; without its compiler `import tvm` takes 7 s there, not 15."""
QEMU = ("qemu-aarch64", "qemu-aarch64-static")
TOOLS = ("apt-get", "dpkg-deb")
SITE = "site-packages"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Userland:
    """root: the folder, as qemu's -L takes it; python: the interpreter in it."""

    root: Path
    qemu: Path
    python: Path

    @property
    def packages(self) -> Path:
        """Where the wheels are."""
        return self.root / SITE


def missing() -> str | None:
    """Why no such folder can be made here; None when one can, or is there."""
    if (_folder() / "done").exists():
        return None
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"the Arm emulation is set up with Debian's {' and '.join(absent)}, not on PATH"
    return None


def userland(say: Say = lambda text: None) -> Userland:
    """The folder, made at the first call: half a minute, 190 MB. say: told of each step.

    Raises EmulationError with what failed and why.
    """
    folder = _folder()
    with locked(folder.parent):
        if not (folder / "done").exists():
            _make(folder, say)
    qemu = (folder / "done").read_text()
    (python,) = (p for p in (folder / "usr/bin").glob("python3.*") if p.suffix[1:].isdigit())
    return Userland(folder, folder / qemu if not qemu.startswith("/") else Path(qemu), python)


def _folder() -> Path:
    versions = [f"{w}=={importlib.metadata.version(w)}" for w in WHEELS]
    text = "\0".join((LAYOUT, *PACKAGES, *versions))
    return config.cache_folder() / "arm64" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _make(folder: Path, say: Say) -> None:
    problem = missing()
    if problem:
        raise EmulationError(problem)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="apt-") as state:
            say("fetching an arm64 Python")
            for deb in _downloaded(Path(state) / "arm64", "arm64", PACKAGES):
                _run(["dpkg-deb", "-x", str(deb), str(folder)])
            qemu = next(filter(None, map(shutil.which, QEMU)), None)
            if qemu is None:
                say("fetching qemu")
                qemu = _qemu(Path(state) / "host", folder)
        say("fetching wheels for it")
        _wheels(folder)
        (folder / "done").write_text(qemu)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _downloaded(state: Path, architecture: str, packages: Sequence[str]) -> list[Path]:
    """The packages and all they need on an empty system, through an apt state of its own."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::State": str(state / "state"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update"])
    _run([*apt, "install", "--yes", "--download-only", *packages])
    found = sorted((state / "cache/archives").glob("*.deb"))
    if not found:
        raise EmulationError(f"apt-get downloaded nothing for {architecture}")
    return found


def _qemu(state: Path, folder: Path) -> str:
    """The one static program that emulates arm64, out of its package of many."""
    host = _run(["dpkg", "--print-architecture"]).strip()
    for deb in _downloaded(state, host, ("qemu-user-static",)):
        if deb.name.startswith("qemu-user-static"):
            unpacked = state / "qemu"
            _run(["dpkg-deb", "-x", str(deb), str(unpacked)])
            (folder / "qemu").mkdir()
            shutil.copy2(unpacked / "usr/bin" / QEMU[1], folder / "qemu" / QEMU[1])
            return f"qemu/{QEMU[1]}"
    raise EmulationError("apt-get has no qemu-user-static")


def _wheels(folder: Path) -> None:
    (python,) = (p for p in (folder / "usr/bin").glob("python3.*") if p.suffix[1:].isdigit())
    version = re.sub(r"^python", "", python.name)
    wanted = [f"{w}=={importlib.metadata.version(w)}" for w in WHEELS]
    platforms = [f"--platform={p}_aarch64" for p in PLATFORMS]
    _run([
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-compile", "--no-deps", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={version}", *platforms, f"--target={folder / SITE}", *wanted,
    ])  # fmt: skip
    for name in UNNEEDED:
        (folder / SITE / "tvm" / "lib" / name).unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    """What the command prints. Raises EmulationError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EmulationError(f"setting up the Arm emulation: {command[0]} failed: {last}")
    return done.stdout
