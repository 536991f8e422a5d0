"""The operations, one class each, one file a family."""

from qcompiler.op import Op, kind_of
from qcompiler.ops.binary import Fmod, Pow, TruncDiv
from qcompiler.ops.fused import Packing, Region, Step, Unpack, steps_of
from qcompiler.ops.math import (
    Abs,
    Add,
    And,
    Cast,
    Clamp,
    Compare,
    Cos,
    Div,
    Elu,
    Erf,
    Exp,
    Gelu,
    Hardsigmoid,
    Hardswish,
    LeakyRelu,
    Log,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Not,
    Or,
    Power,
    Prelu,
    Relation,
    Round,
    Rsqrt,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Sqrt,
    Sub,
    Tanh,
    Where,
)  # fmt: skip
from qcompiler.ops.nn import (
    Attention,
    BatchNorm,
    Conv2d,
    Cumsum,
    LayerNorm,
    Linear,
    Matmul,
    Reduce,
    Reduction,
    RmsNorm,
    Softmax,
)  # fmt: skip
from qcompiler.ops.pool import AvgPool2d, MaxPool2d, Resize, Window
from qcompiler.ops.quant import (
    Dequantize,
    DynamicQuantize,
    IntAdd,
    IntConv2d,
    IntLinear,
    IntMatmul,
    IntMul,
    IntSumPool2d,
    Lookup,
    Quantize,
    Requantize,
    Rescale,
)  # fmt: skip
from qcompiler.ops.tensor import (
    Arange,
    Concat,
    Dilate,
    Expand,
    Flip,
    Full,
    Gather,
    GatherElements,
    Pad,
    Permute,
    Reshape,
    Slice,
    bound_op,
)  # fmt: skip
from qcompiler.ops.values import Const, Get, Input, Tuple, const, settled
from qcompiler.ops.weights import GroupedIntLinear, WeightOnlyLinear

ALL: tuple[type[Op], ...] = (
    Input, Const, Tuple, Get, Reshape, Permute, Slice, Concat, Pad, Expand, Flip, Dilate, Gather,
    GatherElements, Arange, Full,
    Add, Sub, Mul, Div, Maximum, Minimum, Where, Compare, And, Or, Not, Cast, Clamp, LeakyRelu,
    Prelu, Neg, Abs, Sqrt, Rsqrt, Round, Exp, Log, Sin, Cos, Erf, Tanh, Sigmoid, Silu, Gelu,
    Hardswish, Hardsigmoid, Softplus, Elu, Power, Pow, Fmod, TruncDiv,
    Conv2d, Linear, Matmul, Attention, BatchNorm, LayerNorm, RmsNorm, Softmax, Reduce, MaxPool2d,
    AvgPool2d, Resize, Cumsum,
    Quantize, Dequantize, Requantize, Lookup, IntConv2d, IntLinear, IntMatmul, IntAdd, IntMul,
    IntSumPool2d, DynamicQuantize, Rescale, WeightOnlyLinear, GroupedIntLinear,
    Unpack, Region,
)  # fmt: skip

BY_KIND: dict[str, type[Op]] = {kind_of(op): op for op in ALL}

__all__ = [
    "ALL", "BY_KIND", "Abs", "Add", "And", "Arange", "Attention", "AvgPool2d", "BatchNorm", "Cast",
    "Clamp", "Compare", "Concat", "Const", "Conv2d", "Cos", "Cumsum", "Dequantize", "Dilate", "Div",
    "DynamicQuantize", "Elu", "Erf", "Exp", "Expand", "Flip", "Fmod", "Full", "Gather",
    "GatherElements", "Gelu", "Get", "GroupedIntLinear", "Hardsigmoid", "Hardswish", "Input",
    "IntAdd", "IntConv2d", "IntLinear", "IntMatmul", "IntMul", "IntSumPool2d", "LayerNorm",
    "LeakyRelu", "Linear", "Log", "Lookup", "Matmul", "MaxPool2d", "Maximum", "Minimum", "Mul",
    "Neg", "Not", "Op", "Or", "Packing", "Pad", "Permute", "Pow", "Power", "Prelu", "Quantize",
    "Reduce", "Reduction", "Region", "Relation", "Requantize", "Rescale", "Reshape", "Resize",
    "RmsNorm", "Round", "Rsqrt", "Sigmoid", "Silu", "Sin", "Slice", "Softmax", "Softplus", "Sqrt",
    "Step", "Sub", "Tanh", "TruncDiv", "Tuple", "Unpack", "WeightOnlyLinear", "Where", "Window",
    "bound_op", "const", "settled", "steps_of",
]  # fmt: skip
