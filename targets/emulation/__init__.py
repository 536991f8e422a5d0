"""Machines this one is not, run in software: the proof of kernels where the hardware is missing."""

from qcompiler.errors import EmulationError

__all__ = ["EmulationError"]
