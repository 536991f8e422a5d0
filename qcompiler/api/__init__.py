"""The verbs that wire passes, targets and runtime together: quantize, build, compile."""

from .building import build, tune
from .compiling import Stages, compile, stages, stages_of, whole_times
from .quantizing import Progress, calibrate, context, explain, front, normalized, quantize

__all__ = [
    "Progress",
    "Stages",
    "build",
    "calibrate",
    "compile",
    "context",
    "explain",
    "front",
    "normalized",
    "quantize",
    "stages",
    "stages_of",
    "tune",
    "whole_times",
]
