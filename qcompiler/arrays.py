"""Which arrays and tensors have values that can be read; neither torch nor numpy is imported."""

from __future__ import annotations

from typing import Any

DENSE = "torch.strided"


def layout_problem(value: Any) -> str | None:
    """Why a tensor is not dense; None when it is, and for an array."""
    layout = str(getattr(value, "layout", DENSE))
    return None if layout == DENSE else f"expected a dense tensor, got {layout}; .to_dense()"


def device_problem(value: Any, devices: tuple[str, ...] = ("cpu",)) -> str | None:
    """Why a tensor lies elsewhere; None when it lies on a device of these types."""
    device = str(getattr(value, "device", "cpu"))
    fits = device.partition(":")[0] in devices
    return None if fits else f"expected a tensor on the CPU, got {device}"
