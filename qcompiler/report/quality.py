"""How far values are from a reference: the signal-to-quantization-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from qcompiler.graph import Graph

Array = npt.NDArray[np.float64]


def sqnr(reference: Any, value: Any) -> float:
    """`10 log10(sum r^2 / sum (r - v)^2)` in dB over all elements, summed in float64.

    reference, value: tensors or arrays of one shape. Higher is better; each bit is worth about
    6 dB. inf where they are equal, -inf where the reference is zero and the value is not. A
    non-finite element counts only where the two differ there: then the result is NaN. Raises
    ValueError when the shapes differ.
    """
    r, v = _array(reference), _array(value)
    if r.shape != v.shape:
        raise ValueError(f"sqnr: expected equal shapes, got {list(r.shape)} and {list(v.shape)}")
    return _decibels(*_powers(r, v))


def sqnr_of_outputs(
    reference: Graph, graph: Graph, samples: Iterable[Sequence[torch.Tensor]]
) -> dict[str, float]:
    """Per output of `graph` its SQNR in dB against `reference`, both interpreted, over all samples.

    samples: one tuple of tensors, the graph's inputs, after the other. Outputs that hold no floats
    are left out.
    """
    from qcompiler.interpret import run

    signal = [0.0] * len(graph.outputs)
    noise = [0.0] * len(graph.outputs)
    kept = [k for k, node in enumerate(graph.outputs) if node.tensor.dtype.is_float]
    for sample in samples:
        wanted, got = run(reference, tuple(sample)), run(graph, tuple(sample))
        for k in kept:
            s, n = _powers(_array(wanted[k]), _array(got[k]))
            signal[k] += s
            noise[k] += n
    return {graph.outputs[k].name: _decibels(signal[k], noise[k]) for k in kept}


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, np.float64)


def _powers(r: Array, v: Array) -> tuple[float, float]:
    """Signal and noise power; what is equal is no noise, masks of -inf included."""
    same = r == v
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, r - v)
    finite = np.where(same & ~np.isfinite(r), 0.0, r)
    return float((finite * finite).sum()), float((error * error).sum())


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise) or math.isinf(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
