"""Memory of a process that only loads a ResNet-50 in int8 and runs it: ours, without torch, and
ONNX Runtime's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompiler.api import Progress
from qcompiler.bench.bars import SCALED, Verdict
from qcompiler.bench.measure import reason
from qcompiler.bench.ours import Traced, built
from qcompiler.bench.row import OURS
from qcompiler.bench.task import of_work
from qcompiler.bench.works import find
from qcompiler.peers import require
from qcompiler.targets import Target

WORK = "resnet50"
CALLS = 3
LIMIT = 300.0
"""Seconds for a process that loads and runs the model."""

REPORT = """
rows = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(*(int(rows[key].split()[0]) for key in ("VmRSS", "VmHWM")))
"""
RUN_OURS = f"""
import sys
sys.path[:0] = {{paths!r}}
class NoTorch:  # as where it is not installed
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("blocked", name=name)
sys.meta_path.insert(0, NoTorch())
import numpy
from qcompiler.runtime import load
model = load({{file!r}}, threads={{threads}})
x = numpy.zeros((1, 3, 224, 224), numpy.float32)
for _ in range({CALLS}):
    model(x)
assert "torch" not in sys.modules
{REPORT}"""
RUN_ONNXRUNTIME = f"""
import sys
sys.path[:0] = {{paths!r}}
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {{threads}}
session = onnxruntime.InferenceSession({{file!r}}, options, providers=["CPUExecutionProvider"])
x = {{{{session.get_inputs()[0].name: numpy.zeros((1, 3, 224, 224), numpy.float32)}}}}
for _ in range({CALLS}):
    session.run(None, x)
{REPORT}"""


@dataclass(frozen=True)
class Resident:
    """resident, peak: MB (10^6 bytes) after the last call, and at most. failure: why there is
    none."""

    program: str
    owner: str
    resident: float = 0.0
    peak: float = 0.0
    failure: str = ""


def residents(target: Target, peers: tuple[str, ...], threads: int, show: Progress
              ) -> list[Resident]:  # fmt: skip
    """Ours, and ONNX Runtime's where it is among the peers."""
    work = find(WORK)
    assert work is not None
    show("trace for memory", 0, 0)
    task = of_work(work, 1)
    traced = Traced.of(task)
    with TemporaryDirectory(prefix="qcompiler-memory-") as name:
        folder = Path(name)

        def ours() -> str:
            built(traced, SCALED, target, show).model.save(folder / "m.qcm")
            return RUN_OURS.format(paths=sys.path, file=str(folder / "m.qcm"), threads=threads)

        def theirs() -> str:
            require("onnxruntime")
            from qcompiler.peers.onnxruntime import REDUCED, write_static

            show("quantize for onnxruntime", 0, 0)
            write_static(task.job(traced.graph, threads, folder), folder / "q.onnx", **REDUCED)
            file = str(folder / "q.onnx")
            return RUN_ONNXRUNTIME.format(paths=sys.path, file=file, threads=threads)

        found = [_resident(f"{SCALED}, without torch", OURS, ours)]
        if "onnxruntime" in peers:
            found.append(_resident("int8 static u8s7", "onnxruntime", theirs))
    return found


def _resident(program: str, owner: str, code: Callable[[], str]) -> Resident:
    try:
        command = [sys.executable, "-c", code()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except Exception as e:
        return Resident(program, owner, failure=reason(e))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        return Resident(program, owner, failure=last)
    resident, peak = (int(kib) * 1024 / 1e6 for kib in done.stdout.split()[-2:])
    return Resident(program, owner, resident, peak)


def memory_verdict(found: list[Resident]) -> Verdict | None:
    """Ours below ONNX Runtime's; None where that was not asked for."""
    theirs = next((r for r in found if r.owner != OURS), None)
    if theirs is None:
        return None
    ours = found[0]
    bar = "resident memory < ONNX Runtime's"
    failure = ours.failure or theirs.failure
    if failure:
        return Verdict(WORK, bar, None, reason=failure)
    return Verdict(WORK, bar, ours.resident < theirs.resident, ours.program, ours.resident,
                   theirs.owner, theirs.resident, ours.resident / theirs.resident)  # fmt: skip
