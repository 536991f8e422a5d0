"""Models called in a process of its own: `python -m qcompiler.runtime.remote jobs.json`.

How a program is run on an emulated machine, where this is all there is of qcompiler.

A job is {artifact, inputs, outputs, taps}: the model is loaded as any device would load it, called
on the arrays of `inputs` (.npz, in order), and its results are written to `outputs` (.npz): r0, r1
..., with `taps` also t<kernel>_<tensor> of every kernel; or an error, as {error, message}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.runtime.model import load


def run(job: dict[str, Any]) -> None:
    with np.load(job["inputs"]) as file:
        inputs = [file[name] for name in file.files]
    model = load(job["artifact"], threads=1)
    call = model.tapped(inputs) if job["taps"] else model.called(inputs)
    arrays = {f"r{k}": r for k, r in enumerate(call.outputs)}
    for kernel, tensors in enumerate(call.taps):
        arrays |= {f"t{kernel}_{k}": t for k, t in enumerate(tensors)}
    np.savez(job["outputs"], **arrays)


def main(path: str) -> None:
    errors: list[dict[str, str] | None] = []
    for job in json.loads(Path(path).read_text()):
        try:
            run(job)
            errors.append(None)
        except Exception as e:
            errors.append({"error": type(e).__name__, "message": str(e)})
    Path(path).with_suffix(".done").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1])
