"""The ONNX file of a job, written once and read by every peer that takes ONNX."""

from __future__ import annotations

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from qcompiler.peers.mode import Inputs, Job

OPSET = 17
"""The last that the exporter writes which needs no package beyond torch."""


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
    """The job's model.onnx. What the exporter raises is raised at every call."""
    path = job.folder / "model.onnx"
    if path.exists():
        return path
    part = job.folder / "part.onnx"
    # In eval mode itself: the exporter gives a module back in the mode of its root.
    flat = Flat(job.module).eval()
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            torch.onnx.export(
                flat, job.inputs, str(part), opset_version=OPSET, dynamo=False,
                input_names=input_names(job),
            )  # fmt: skip
    return part.replace(path)
