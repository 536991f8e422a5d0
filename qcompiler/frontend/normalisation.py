"""Normalisation: batch norm is kept, the others become rows of the last axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, static
from qcompiler.frontend.errors import Absent, Refusal
from qcompiler.graph import Node
from qcompiler.ops import Add, BatchNorm, LayerNorm, Mul, RmsNorm
from qcompiler.types import Dim

aten = torch.ops.aten

FOR_TRAINING = Absent("saved statistics of a normalisation, which serve training only")


def ones(b: Builder, like: Node | None, size: int, x: Node) -> Node:
    """The given weight as a vector, or ones."""
    return b.full((size,), 1, x.tensor.dtype) if like is None else b.reshape(like, (size,))


def zeros(b: Builder, like: Node | None, size: int, x: Node) -> Node:
    return b.full((size,), 0, x.tensor.dtype) if like is None else b.reshape(like, (size,))


def batch_norm(
    b: Builder, x: Node, w: Node | None, bias: Node | None, mean: Node, var: Node, eps: float
) -> Node:
    (channels,) = static(x.tensor.shape[1:2], "batch norm over channels")
    return b(BatchNorm(eps), x, mean, var, ones(b, w, channels, x), zeros(b, bias, channels, x))


def batch_norm_eval(
    b: Builder, x: Node, w: Node | None, bias: Node | None, mean: Node, var: Node, _: float,
    eps: float,
) -> Value:  # fmt: skip
    return batch_norm(b, x, w, bias, mean, var, eps), FOR_TRAINING, FOR_TRAINING


def batch_norm_any(
    b: Builder, x: Node, w: Node | None, bias: Node | None, mean: Node | None, var: Node | None,
    training: bool, _: float, eps: float, *__: Any,
) -> Value:  # fmt: skip
    """Without running statistics it normalises by the batch's own, as in training."""
    if training or mean is None or var is None:
        raise Refusal(f"{BY_BATCH}; export the model in eval mode")
    return batch_norm(b, x, w, bias, mean, var, eps)


def rows(b: Builder, x: Node, shape: Sequence[Dim]) -> tuple[Node, int]:
    """The operand with its last `len(shape)` axes merged into one row."""
    sizes = static(shape, "normalisation over axes")
    width = 1
    for size in sizes:
        width *= size
    return b.reshape(x, (*x.tensor.shape[: x.tensor.rank - len(sizes)], width)), width


def layer_norm(
    b: Builder, x: Node, shape: Sequence[Dim], w: Node | None = None, bias: Node | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    y, width = rows(b, x, shape)
    y = b(LayerNorm(eps), y, ones(b, w, width, x), zeros(b, bias, width, x))
    return b.reshape(y, b.out.shape)


def native_layer_norm(b: Builder, *args: Any) -> Value:
    return layer_norm(b, *args), FOR_TRAINING, FOR_TRAINING


def rms_norm(
    b: Builder, x: Node, shape: Sequence[Dim], w: Node | None = None, eps: float | None = None
) -> Value:
    y, width = rows(b, x, shape)
    small = torch.finfo(x.tensor.dtype.torch).eps if eps is None else eps
    return b.reshape(b(RmsNorm(small), y, ones(b, w, width, x)), b.out.shape)


def group_norm(
    b: Builder, x: Node, groups: int, w: Node | None = None, bias: Node | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    """Each group of channels is one row, normalised without weights; then channel by channel."""
    n, channels, *space = x.tensor.shape
    per_group = static((channels, *space), "group norm over axes")[0] // groups
    y, width = rows(b, b.reshape(x, (n, groups, per_group, *space)), (per_group, *space))
    y = b(LayerNorm(eps), y, ones(b, None, width, x), zeros(b, None, width, x))
    y = b.reshape(y, x.tensor.shape)
    along = (channels, *[1] * len(space))
    y = y if w is None else b(Mul(), y, b.reshape(w, along))
    return y if bias is None else b(Add(), y, b.reshape(bias, along))


def native_group_norm(b: Builder, x: Node, w: Node | None, bias: Node | None, *args: Any) -> Value:
    groups, eps = args[-2:]
    return group_norm(b, x, groups, w, bias, eps), FOR_TRAINING, FOR_TRAINING


def instance_norm(
    b: Builder, x: Node, w: Node | None, bias: Node | None, mean: Node | None, var: Node | None,
    by_input: bool, _: float, eps: float, *__: Any,
) -> Value:  # fmt: skip
    if not by_input and mean is not None and var is not None:
        return batch_norm(b, x, w, bias, mean, var, eps)
    (channels,) = static(x.tensor.shape[1:2], "instance norm over channels")
    return group_norm(b, x, channels, w, bias, eps)


def dropout(b: Builder, x: Node, _: float, training: bool | None = None) -> Value:
    if training:
        raise Refusal("dropout in training mode; export the model in eval mode")
    return x


def in_training(what: str) -> Handler:
    def row(*_: Any) -> Value:
        raise Refusal(f"{what}; export the model in eval mode")

    return row


BY_BATCH = "batch norm by the batch's own statistics"

ROWS: Mapping[Any, Handler] = {
    aten.native_dropout.default: in_training("dropout in training mode"),
    aten._native_batch_norm_legit.default: in_training(BY_BATCH),
    aten._native_batch_norm_legit.no_stats: in_training(BY_BATCH),
    aten._native_batch_norm_legit_functional.default: in_training(BY_BATCH),
    aten._native_batch_norm_legit_no_training.default: batch_norm_eval,
    aten.batch_norm.default: batch_norm_any,
    aten.layer_norm.default: layer_norm,
    aten.native_layer_norm.default: native_layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
    aten.native_group_norm.default: native_group_norm,
    aten.instance_norm.default: instance_norm,
    aten.dropout.default: dropout,
    aten.feature_dropout.default: dropout,
    aten.alpha_dropout.default: dropout,
}
