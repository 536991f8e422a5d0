"""The ONNX file of a job, written once and read by every peer that takes ONNX."""

from __future__ import annotations

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from qcompiler.peers.mode import Inputs, Job, first_line

OPSET = 17
"""The last that the exporter writes which needs no package beyond torch."""


class ExportError(RuntimeError):
    """PyTorch cannot write the job as ONNX; the message is its reason."""


class Flat(torch.nn.Module):
    """The module with its results as a flat tuple of tensors."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensors(self.module(*inputs))


def tensors(results: Any) -> tuple[torch.Tensor, ...]:
    """The tensors among a module's results, in its order."""
    return tuple(t for t in tree_leaves(results) if isinstance(t, torch.Tensor))


def input_names(job: Job) -> list[str]:
    return [f"input_{k}" for k in range(len(job.inputs))]


def feed(job: Job, inputs: Inputs) -> dict[str, Any]:
    """The arrays of these inputs by the names they have in the ONNX file."""
    return {n: t.numpy() for n, t in zip(input_names(job), inputs, strict=True)}


def exported(job: Job) -> Path:
    """The job's model.onnx. Raises ExportError, at the first call and, at once, at later ones."""
    path, failure = job.folder / "model.onnx", job.folder / "no_model.txt"
    if failure.exists():
        raise ExportError(failure.read_text())
    if path.exists():
        return path
    try:
        return _write(job, job.folder / "part.onnx").replace(path)
    except Exception as e:  # of many kinds
        failure.write_text(f"torch.onnx.export: {first_line(e)}")
        raise ExportError(failure.read_text()) from e


def _write(job: Job, path: Path) -> Path:
    # In eval mode itself: the exporter gives a module back in the mode of its root.
    flat = Flat(job.module).eval()
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            torch.onnx.export(
                flat, job.inputs, str(path), opset_version=OPSET, dynamo=False,
                input_names=input_names(job),
            )  # fmt: skip
    return path
