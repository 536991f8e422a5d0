"""64-bit Arm machines by qemu's user-mode emulation: the ordinary package runs an artifact there.

    from qcompiler.targets.emulation import arm

    if arm.missing() is None:                        # else the reason why not
        machine = arm.Arm("cortex-a72")              # v8.0; cortex-a76: dotprod; max: i8mm
        results = machine.run([arm.Job(path, inputs)])

The first use sets up an arm64 Python in the cache folder (userland.py). Starting one takes seven
seconds, so that many jobs share a process. An instruction that the chosen CPU lacks ends it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qcompiler
from qcompiler.errors import EmulationError

from .userland import Say, Userland, missing, userland

__all__ = ["Arm", "Job", "Result", "missing", "userland"]


@dataclass(frozen=True)
class Job:
    """A model to call once. inputs: arrays in the order of its inputs. taps: see Result."""

    artifact: Path
    inputs: Sequence[Any]
    taps: bool = False


@dataclass(frozen=True)
class Result:
    """outputs: the model's, then its new state where `taps` is set. taps: the tensors of each
    kernel, in the order they ran. error: what was raised instead, as `Kind: message`."""

    outputs: tuple[Any, ...] = ()
    taps: tuple[tuple[Any, ...], ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Arm:
    """An emulated CPU, by qemu's name for it."""

    cpu: str

    def missing(self) -> str | None:
        """Why it cannot be emulated here; None when it can."""
        return missing()

    def begin(self, artifact: Path) -> Callable[[Sequence[Any], bool], Result]:
        """Calls the artifact there. Raises EmulationError with what the model raised."""

        def call(inputs: Sequence[Any], tap: bool) -> Result:
            (result,) = self.run([Job(artifact, inputs, tap)])
            if result.error is not None:
                raise EmulationError(f"on the emulated {self.cpu}: {result.error}")
            return result

        return call

    def run(self, jobs: Sequence[Job], say: Say = lambda text: None) -> list[Result]:
        """The jobs, in one process. Raises EmulationError when it cannot start or dies."""
        land = userland(say)
        with tempfile.TemporaryDirectory(prefix="qcompiler-arm-") as folder:
            work = Path(folder)
            (work / "qcompiler").symlink_to(Path(qcompiler.__file__).parent)
            table = work / "jobs.json"
            table.write_text(json.dumps([_row(job, k, work) for k, job in enumerate(jobs)]))
            self._start(land, table)
            errors = json.loads(table.with_suffix(".done").read_text())
            return [_result(e, _outputs(work, k)) for k, e in enumerate(errors)]

    def _start(self, land: Userland, table: Path) -> None:
        python = [land.qemu, "-cpu", self.cpu, "-L", land.root, land.python, "-S"]
        command = [*python, "-m", "qcompiler.runtime.remote", table]
        env = {
            "HOME": str(table.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{table.parent}:{land.packages}",
        }
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            cause = "an instruction it lacks, SIGILL" if "signal 4" in done.stderr else last
            raise EmulationError(f"the emulated {self.cpu} ended: {cause}")


def _outputs(work: Path, k: int) -> Path:
    return work / f"out{k}.npz"


def _row(job: Job, k: int, work: Path) -> dict[str, Any]:
    inputs = work / f"in{k}.npz"
    np.savez(inputs, *map(np.asarray, job.inputs))
    return {
        "artifact": str(Path(job.artifact).absolute()),
        "inputs": str(inputs),
        "outputs": str(_outputs(work, k)),
        "taps": job.taps,
    }


def _result(error: dict[str, str] | None, path: Path) -> Result:
    if error is not None:
        return Result(error=f"{error['error']}: {error['message']}")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    taps: dict[int, list[Any]] = {}
    for name, value in arrays.items():
        if name.startswith("t"):
            taps.setdefault(int(name[1:].partition("_")[0]), []).append(value)
    outputs = tuple(v for name, v in arrays.items() if name.startswith("r"))
    return Result(outputs, tuple(tuple(taps[k]) for k in sorted(taps)))
