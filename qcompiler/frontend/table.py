"""The table of contents: one row per aten op, collected from one file a family."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from qcompiler.frontend import (
    activations,
    convolution,
    creation,
    division,
    elementwise,
    indexing,
    movement,
    normalisation,
    pooling,
    powers,
    products,
    recurrent,
    reduction,
)  # fmt: skip
from qcompiler.frontend.builder import Handler

aten = torch.ops.aten

FAMILIES = (
    elementwise, powers, division, activations, movement, indexing, creation, reduction, products,
    convolution, pooling, normalisation, recurrent,
)  # fmt: skip

TABLE: Mapping[Any, Handler] = MappingProxyType(
    {op: handler for family in FAMILIES for op, handler in family.ROWS.items()}
)

VANISH = frozenset({
    aten._assert_async.default, aten._assert_async.msg, aten._assert_scalar.default,
    aten._assert_tensor_metadata.default, aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default, aten._linalg_check_errors.default,
})  # fmt: skip
"""Checks without a result."""

CONTROL_FLOW = frozenset({"cond", "while_loop", "map_impl", "scan", "associative_scan"})
"""Higher-order ops whose course the data decides."""
