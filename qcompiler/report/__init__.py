"""What was done to a model: as data, as a table, as a page.

Reading a report needs no torch; making one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qcompiler.report.facts import Layer, Report, ReportError

if TYPE_CHECKING:
    from qcompiler.report.html import Section, page, write_page
    from qcompiler.report.quality import sqnr, sqnr_of_outputs
    from qcompiler.report.survey import describe

_LAZY = {
    "describe": "qcompiler.report.survey",
    "Section": "qcompiler.report.html",
    "page": "qcompiler.report.html",
    "write_page": "qcompiler.report.html",
    "sqnr": "qcompiler.report.quality",
    "sqnr_of_outputs": "qcompiler.report.quality",
}

__all__ = [
    "Layer", "Report", "ReportError", "Section", "describe", "page", "sqnr", "sqnr_of_outputs",
    "write_page",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'qcompiler.report' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
