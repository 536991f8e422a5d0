"""OpenVINO: float32, int8 by NNCF, and weights compressed to 8 and 4 bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import nncf
import openvino as ov
from nncf.quantization.advanced_parameters import (
    AdvancedCompressionParameters,
    AdvancedQuantizationParameters,
    GroupSizeFallbackMode,
    OverflowFix,
)

from qcompiler.peers.exported import exported, feed
from qcompiler.peers.mode import (
    BOUND_BY_WEIGHTS,
    Inputs,
    Job,
    Mode,
    Precision,
    Program,
    normalises,
)

PEER = "openvino"
GROUP = 64
"""Weights that share a scale in the 4-bit mode, and activations where they are quantized too."""
DYNAMIC = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
"""Activations quantized in groups of 32 where they meet compressed weights: faster than none."""


def program(model: Any, job: Job, extra: dict[str, str] | None = None) -> Program:
    """The model's program, one stream, float32 where it is not int8."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(job.threads),
        "NUM_STREAMS": "1",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        **(extra or {}),
    }
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    names = [next(iter(i.get_names())) for i in model.inputs]

    def on(inputs: Inputs) -> Program:
        arrays = feed(job, inputs)
        values = [arrays[name] for name in names]
        return Program(partial(request.infer, values, share_inputs=True, share_outputs=True),
                       _arrays, on)  # fmt: skip

    return on(job.inputs)


def _arrays(results: Any) -> Sequence[Any]:
    return list(results.values())


def _read(job: Job) -> Any:
    return ov.Core().read_model(str(exported(job)))


def float32(job: Job) -> Program:
    return program(_read(job), job)


def int8(job: Job, fix: OverflowFix) -> Program:
    """nncf.quantize over the job's calibration data."""
    model = _read(job)
    names = [next(iter(i.get_names())) for i in model.inputs]

    def item(inputs: Any) -> list[Any]:
        arrays = feed(job, inputs)
        return [arrays[name] for name in names]

    # It smooths activations, which is right behind a LayerNorm, and costs a lone product 10 dB.
    kind = nncf.ModelType.TRANSFORMER if normalises(job.module) else None
    with _quiet():
        made = nncf.quantize(
            model, nncf.Dataset(job.calibration, item), model_type=kind,
            subset_size=len(job.calibration),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
        )  # fmt: skip
    return program(made, job)


def compressed(job: Job, **options: Any) -> Program:
    """nncf.compress_weights, and dynamic quantization of what meets them."""
    with _quiet():
        made = nncf.compress_weights(_read(job), **options)
    return program(made, job, DYNAMIC)


@contextmanager
def _quiet() -> Iterator[None]:
    """Its progress bars and information are not shown."""
    import os
    from contextlib import redirect_stderr, redirect_stdout

    log = logging.getLogger("nncf")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        log.setLevel(before)


def _weights(name: str, what: str, precision: Precision, prepare: Callable[[Job], Program]) -> Mode:
    return Mode(PEER, name, what, precision, prepare, families=BOUND_BY_WEIGHTS)


SMALLER_GROUPS = AdvancedCompressionParameters(
    group_size_fallback_mode=GroupSizeFallbackMode.ADJUST
)
"""Where a layer's width is no multiple of the group."""
INT8_SYM, INT4_SYM = nncf.CompressWeightsMode.INT8_SYM, nncf.CompressWeightsMode.INT4_SYM
METHODS = (
    Mode(PEER, "int8", "NNCF, full range of weights",
         Precision.INT8, partial(int8, fix=OverflowFix.DISABLE), saturates=True),
    Mode(PEER, "int8 overflow fix", "NNCF, half the range of weights",
         Precision.INT8, partial(int8, fix=OverflowFix.ENABLE)),
)  # fmt: skip
MODES = (
    Mode(PEER, "float32", "latency hint, one stream", Precision.FLOAT32, float32),
    *METHODS,
    _weights("int8 weights", "NNCF INT8_SYM, activations dynamic",
             Precision.INT8, partial(compressed, mode=INT8_SYM)),
    _weights("4 bit", "NNCF INT4_SYM, groups of 64, activations dynamic",
             Precision.FOUR_BIT,
             partial(compressed, mode=INT4_SYM, group_size=GROUP, all_layers=True,
                     advanced_parameters=SMALLER_GROUPS)),
)  # fmt: skip
