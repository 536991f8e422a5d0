"""Errors that are raised on paths that must not import torch."""

from __future__ import annotations


class InputError(ValueError):
    """The values given do not fit the graph's inputs."""
