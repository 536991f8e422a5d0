"""Machines this one is not, run in software: the proof of kernels where the hardware is missing."""

from .errors import EmulationError

__all__ = ["EmulationError"]
