"""The passes, one file each, and the pipelines they make: read top to bottom."""

if __name__ != "qcompiler.passes":
    raise ImportError("import qcompiler.passes, not passes: a second copy breaks isinstance")

from collections.abc import Mapping
from types import MappingProxyType

from qcompiler.errors import MissingTorch, has_torch

if not has_torch():
    raise MissingTorch("qcompiler.passes")

from qcompiler.pipeline import Pass, Pipeline
from qcompiler.recipe import RECIPES, Activations, Recipe, Rounding, Scaling

from .adaround import AdaRound, adaround
from .assign_precision import AssignPrecision, assign_precision
from .awq import Awq, awq
from .calibrate import calibrate
from .choose_ranges import ChooseRanges, choose_ranges
from .correct_bias import CorrectBias, correct_bias
from .decompose import decompose
from .equalize import Equalize, equalize
from .fold import Fold, fold
from .fuse import Fuse, fuse
from .gptq import Gptq, gptq
from .insert_qdq import InsertQdq, insert_qdq
from .integerize import Integerize, integerize
from .layout import layout
from .pack import Pack, pack
from .propagate import propagate
from .simplify import Simplify, simplify
from .smooth import Smooth, smooth

NORMALIZE: tuple[Pass, ...] = (decompose, simplify, fold, simplify)
SCALE: Mapping[Scaling, tuple[Pass, ...]] = MappingProxyType({
    Scaling.NONE: (),
    Scaling.EQUALIZE: (equalize,),
    Scaling.SMOOTH: (calibrate, smooth),
    Scaling.AWQ: (calibrate, awq),
})  # fmt: skip
ROUND: Mapping[Rounding, tuple[Pass, ...]] = MappingProxyType({
    Rounding.NEAREST: (),
    Rounding.ADAROUND: (adaround,),
    Rounding.GPTQ: (gptq,),
})  # fmt: skip


def quantizing(recipe: Recipe) -> Pipeline:
    """The passes from FLOAT to INTEGER by a recipe; one that quantizes nothing has nothing to scale
    or round."""
    codes = recipe.activations is not Activations.NONE
    steps = (
        *NORMALIZE,
        *(SCALE[recipe.scaling] if codes else ()),
        calibrate,
        assign_precision,
        choose_ranges,
        insert_qdq,
        *(ROUND[recipe.rounding] if codes else ()),
        correct_bias,
        propagate,
        integerize,
        simplify,
    )
    return Pipeline(steps)


quantize = quantizing(RECIPES[0])
QUANTIZE = quantize.passes
FUSE: tuple[Pass, ...] = (layout, fold, simplify, fuse)
BUILD: tuple[Pass, ...] = (*FUSE, pack)

regions = Pipeline(FUSE)
build = Pipeline(BUILD)

ALL: tuple[Pass, ...] = tuple(
    dict.fromkeys((*QUANTIZE, *BUILD, equalize, smooth, awq, adaround, gptq))
)


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
    "AdaRound",
    "AssignPrecision",
    "Awq",
    "ChooseRanges",
    "CorrectBias",
    "Equalize",
    "Fold",
    "Fuse",
    "Gptq",
    "InsertQdq",
    "Integerize",
    "Pack",
    "Simplify",
    "Smooth",
    "assign_precision",
    "build",
    "by_name",
    "quantize",
    "quantizing",
    "regions",
]
