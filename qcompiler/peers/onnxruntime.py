"""ONNX Runtime: float32, static and dynamic int8, 4-bit weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
)
from onnxruntime.quantization import quantize_static as quantized_statically

from qcompiler.peers.exported import exported, feed
from qcompiler.peers.mode import (
    BOUND_BY_WEIGHTS,
    DENSE,
    Inputs,
    Job,
    Mode,
    Precision,
    Program,
    normalises,
)

PEER = "onnxruntime"
ERRORS_ONLY = 3
"""ONNX Runtime's severity of log lines."""
GROUP = 32
"""Weights that share a scale in the 4-bit mode: its smallest, hence most accurate, common size."""
INT8_PRODUCTS = 4
"""MatMulNBits' accuracy_level that quantizes activations to 8 bits: its fastest."""
PRODUCTS = ["MatMul", "Gemm"]
"""What is quantized of a transformer. By default the sum with an attention mask is, too, and its
range, from -3e38 on, leaves nothing of the scores: BERT has 3 dB then, and 25 dB with this."""


def session(path: Path | bytes, threads: int) -> Any:
    """A session with all graph optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    model = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def program(path: Path, job: Job) -> Program:
    """The file's program on the job's inputs; inputs that the exporter dropped are left out."""
    opened = session(path, job.threads)
    taken = {i.name for i in opened.get_inputs()}

    def on(inputs: Inputs) -> Program:
        values = {name: a for name, a in feed(job, inputs).items() if name in taken}
        return Program(lambda: opened.run(None, values), _as_given, on)

    return on(job.inputs)


def _as_given(results: Sequence[Any]) -> Sequence[Any]:
    return results


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The job's calibration data, as ONNX Runtime asks for it."""

    def __init__(self, job: Job, taken: set[str]) -> None:
        feeds = (feed(job, inputs) for inputs in job.calibration)
        self.rest = iter([{k: v for k, v in f.items() if k in taken} for f in feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rest, None)


def float32(job: Job) -> Program:
    return program(exported(job), job)


def static(job: Job, **settings: Any) -> Program:
    """settings: as `write_static` takes them."""
    return _quantized(job, partial(write_static, job, **settings))


def write_static(
    job: Job, made: Path, weights: str, reduce_range: bool, ranges: str = "MinMax"
) -> None:
    """QDQ, a scale per output channel. ranges: how those of activations are chosen."""
    source = exported(job)
    taken = {i.name for i in onnx.load(source, load_external_data=False).graph.input}
    with _quiet():
        quantized_statically(
            source, made, Reader(job, taken), per_channel=True, reduce_range=reduce_range,
            activation_type=QuantType.QUInt8, weight_type=getattr(QuantType, weights),
            calibrate_method=getattr(CalibrationMethod, ranges),
            op_types_to_quantize=PRODUCTS if normalises(job.module) else None,
        )  # fmt: skip


def dynamic(job: Job, reduce_range: bool) -> Program:
    source = exported(job)

    def write(made: Path) -> None:
        quantize_dynamic(
            source, made, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8
        )

    return _quantized(job, write)


def four_bit(job: Job) -> Program:
    """MatMulNBits: symmetric groups of 32, products with 8-bit activations."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    source = exported(job)

    def write(made: Path) -> None:
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), block_size=GROUP, is_symmetric=True, accuracy_level=INT8_PRODUCTS
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(made))

    return _quantized(job, write)


def _quantized(job: Job, write: Callable[[Path], None]) -> Program:
    """The program of what `write` writes; the file is gone afterwards."""
    made = job.folder / "quantized.onnx"
    try:
        with _quiet():
            write(made)
        return program(made, job)
    finally:
        made.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Its advice to preprocess, which changes nothing here, is not shown, nor what it prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


FULL: Mapping[str, Any] = {"weights": "QInt8", "reduce_range": False}
REDUCED: Mapping[str, Any] = {"weights": "QInt8", "reduce_range": True}
UNSIGNED: Mapping[str, Any] = {"weights": "QUInt8", "reduce_range": False}
MODES = (
    Mode(PEER, "float32", "all graph optimizations", Precision.FLOAT32, float32),
    Mode(PEER, "int8 static u8s8", "QDQ per channel, 8-bit weights",
         Precision.INT8, partial(static, **FULL), saturates=True),
    Mode(PEER, "int8 static u8s7", "QDQ per channel, weights reduced to 7 bits",
         Precision.INT8, partial(static, **REDUCED)),
    Mode(PEER, "int8 static u8u8", "QDQ per channel, unsigned weights",
         Precision.INT8, partial(static, **UNSIGNED)),
    Mode(PEER, "int8 dynamic u8s8", "dynamic per channel, 8-bit weights",
         Precision.INT8, partial(dynamic, reduce_range=False), saturates=True, families=DENSE),
    Mode(PEER, "int8 dynamic u8s7", "dynamic per channel, weights reduced to 7 bits",
         Precision.INT8, partial(dynamic, reduce_range=True), families=DENSE),
    Mode(PEER, "4 bit", "MatMulNBits, groups of 32, accuracy_level 4",
         Precision.FOUR_BIT, four_bit, families=BOUND_BY_WEIGHTS),
)  # fmt: skip
METHODS = tuple(
    Mode(PEER, f"{ranges} {name}", f"QDQ per channel, {what}", Precision.INT8,
         partial(static, **setting, ranges=ranges))
    for ranges in ("MinMax", "Entropy", "Percentile")
    for name, what, setting in (("u8s7", "7-bit weights", REDUCED), ("u8u8", "exact", UNSIGNED))
)  # fmt: skip
"""By ways to choose ranges, with weights whose sums are exact on any machine."""
