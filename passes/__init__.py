"""The passes, one file each, and the pipelines they make: read top to bottom."""

if __name__ != "qcompiler.passes":
    raise ImportError("import qcompiler.passes, not passes: a second copy breaks isinstance")

from qcompiler.errors import MissingTorch, has_torch

if not has_torch():
    raise MissingTorch("qcompiler.passes")

from qcompiler.pipeline import Pass, Pipeline

from .assign_precision import AssignPrecision, assign_precision
from .calibrate import calibrate
from .choose_ranges import ChooseRanges, choose_ranges
from .correct_bias import CorrectBias, correct_bias
from .decompose import decompose
from .fold import Fold, fold
from .fuse import Fuse, fuse
from .insert_qdq import InsertQdq, insert_qdq
from .integerize import Integerize, integerize
from .layout import layout
from .pack import Pack, pack
from .propagate import propagate
from .simplify import Simplify, simplify

NORMALIZE: tuple[Pass, ...] = (decompose, simplify, fold, simplify)
QUANTIZE: tuple[Pass, ...] = (
    *NORMALIZE,
    calibrate,
    assign_precision,
    choose_ranges,
    insert_qdq,
    correct_bias,
    propagate,
    integerize,
    simplify,
)
FUSE: tuple[Pass, ...] = (layout, fold, simplify, fuse)
BUILD: tuple[Pass, ...] = (*FUSE, pack)

quantize = Pipeline(QUANTIZE)
regions = Pipeline(FUSE)
build = Pipeline(BUILD)

ALL: tuple[Pass, ...] = tuple(dict.fromkeys((*QUANTIZE, *BUILD)))


def by_name(name: str) -> Pass:
    """A pass by the name it has in a pipeline. Raises ValueError listing the names."""
    for p in ALL:
        if p.name == name:
            return p
    known = ", ".join(p.name for p in ALL)
    raise ValueError(f"there is no pass {name!r}; known: {known}")


__all__ = [
    "ALL",
    "BUILD",
    "FUSE",
    "NORMALIZE",
    "QUANTIZE",
    "AssignPrecision",
    "ChooseRanges",
    "CorrectBias",
    "Fold",
    "Fuse",
    "InsertQdq",
    "Integerize",
    "Pack",
    "Simplify",
    "build",
    "by_name",
    "quantize",
    "regions",
]
