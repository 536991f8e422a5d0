"""The frontend: a PyTorch module becomes a FLOAT graph. Loads torch only when tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.frontend.errors import TraceError
    from qcompiler.frontend.tracing import trace

__all__ = ["TraceError", "trace"]


def __getattr__(name: str) -> Any:
    if name == "trace":
        from qcompiler.frontend.tracing import trace

        return trace
    if name == "TraceError":
        from qcompiler.frontend.errors import TraceError

        return TraceError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
