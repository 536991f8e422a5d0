"""Recurrent layers, unrolled over a known and small number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qcompiler.frontend.builder import Builder, Handler, Value, static
from qcompiler.frontend.errors import Refusal
from qcompiler.graph import Node
from qcompiler.ops import Add, Clamp, Concat, Linear, Mul, Op, Sigmoid, Sub, Tanh

aten = torch.ops.aten

MAX_STEPS = 64
"""Steps. Each one adds about ten nodes per layer and direction; a longer loop is not unrolled."""


@dataclass(frozen=True)
class Weights:
    """Of one layer and direction: input [G*H, I], hidden [G*H, H] and their biases [G*H]."""

    w_in: Node
    w_hidden: Node
    b_in: Node | None = None
    b_hidden: Node | None = None


State = tuple[Node, ...]  # (h,) or (h, c), each [N, H]
Step = Callable[[Builder, Node, State, Weights], State]


def affine(b: Builder, x: Node, w: Node, bias: Node | None) -> Node:
    return b(Linear(), x, w, *([] if bias is None else [bias]))


def gates(b: Builder, x: Node, count: int) -> list[Node]:
    axis = x.tensor.rank - 1
    (width,) = static(x.tensor.shape[-1:], "a recurrent layer")
    size = width // count
    return [b.slice(x, axis, k * size, (k + 1) * size) for k in range(count)]


def lstm_step(b: Builder, projected: Node, state: State, w: Weights) -> State:
    """i, f, g, o (Hochreiter and Schmidhuber 1997, PyTorch's order); `projected` = x w_in + b."""
    h, c = state
    total = b(Add(), projected, affine(b, h, w.w_hidden, w.b_hidden))
    i, f, g, o = gates(b, total, 4)
    kept = b(Mul(), b(Sigmoid(), f), c)
    c = b(Add(), kept, b(Mul(), b(Sigmoid(), i), b(Tanh(), g)))
    return b(Mul(), b(Sigmoid(), o), b(Tanh(), c)), c


def gru_step(b: Builder, projected: Node, state: State, w: Weights) -> State:
    """r, z, n (Cho et al. 2014); the reset gate scales the hidden product, as in PyTorch."""
    (h,) = state
    xr, xz, xn = gates(b, projected, 3)
    hr, hz, hn = gates(b, affine(b, h, w.w_hidden, w.b_hidden), 3)
    r, z = b(Sigmoid(), b(Add(), xr, hr)), b(Sigmoid(), b(Add(), xz, hz))
    n = b(Tanh(), b(Add(), xn, b(Mul(), r, hn)))
    return (b(Add(), n, b(Mul(), z, b(Sub(), h, n))),)


def rnn_step(activation: Op) -> Step:
    def step(b: Builder, projected: Node, state: State, w: Weights) -> State:
        total = b(Add(), projected, affine(b, state[0], w.w_hidden, w.b_hidden))
        return (b(activation, total),)

    return step


def cell(step: Step) -> Handler:
    """One step of one layer."""

    def row(b: Builder, x: Node, state: Any, *weights: Node) -> Value:
        w = Weights(*weights)
        given = tuple(state) if isinstance(state, list) else (state,)
        result = step(b, affine(b, x, w.w_in, w.b_in), given, w)
        return result if len(result) > 1 else result[0]

    return row


def layers(step: Step, states: int) -> Handler:
    """A whole recurrent layer stack; the result is the outputs and the last states."""

    def row(
        b: Builder, x: Node, state: Any, params: Sequence[Node], biases: bool, count: int,
        dropout: float, training: bool, bidirectional: bool, batch_first: bool,
    ) -> Value:  # fmt: skip
        if training and dropout:
            raise Refusal("recurrent dropout in training mode; export the model in eval mode")
        given = list(state) if isinstance(state, list) else [state]
        x = b.permute(x, (1, 0, 2)) if batch_first else x
        check_steps(x)
        runs = 2 if bidirectional else 1
        weights = each_weights(params, biases, count * runs)
        last: list[State] = []
        for _ in range(count):
            ends = []
            for direction in range(runs):
                first = tuple(one_state(b, s, len(last)) for s in given)
                y, end = scan(b, step, x, first, next(weights), backward=direction == 1)
                ends.append(y)
                last.append(end)
            x = ends[0] if runs == 1 else b(Concat(2), *ends)
        y = b.permute(x, (1, 0, 2)) if batch_first else x
        return (y, *(stacked(b, [end[k] for end in last]) for k in range(states)))

    return row


def check_steps(x: Node) -> None:
    """Raises Refusal for a sequence that is not unrolled."""
    steps = x.tensor.shape[0]
    if not isinstance(steps, int) or not 0 < steps <= MAX_STEPS:
        raise Refusal(
            f"a recurrent layer over {steps} steps; it is unrolled, over at most {MAX_STEPS} "
            "known steps: run it on shorter pieces and pass the state on"
        )


def each_weights(params: Sequence[Node], biases: bool, count: int) -> Iterator[Weights]:
    each = 4 if biases else 2
    if len(params) != each * count:
        raise Refusal("a recurrent layer with a projection (proj_size)")
    return (Weights(*params[k : k + each]) for k in range(0, len(params), each))


def one_state(b: Builder, states: Node, k: int) -> Node:
    return b.reshape(b.slice(states, 0, k, k + 1), states.tensor.shape[1:])


def stacked(b: Builder, parts: Sequence[Node]) -> Node:
    rows = [b.reshape(p, (1, *p.tensor.shape)) for p in parts]
    return rows[0] if len(rows) == 1 else b(Concat(0), *rows)


def scan(
    b: Builder, step: Step, x: Node, state: State, w: Weights, backward: bool
) -> tuple[Node, State]:
    """One direction of one layer over x [L, N, I]: outputs [L, N, H] and the last state.

    The input's products are made for all steps at once.
    """
    projected = affine(b, x, w.w_in, w.b_in)
    (steps,) = static(x.tensor.shape[:1], "a recurrent layer")
    outputs: dict[int, Node] = {}
    for t in reversed(range(steps)) if backward else range(steps):
        state = step(b, one_state(b, projected, t), state, w)
        outputs[t] = state[0]
    return stacked(b, [outputs[t] for t in range(steps)]), state


ROWS: Mapping[Any, Handler] = {
    aten.lstm_cell.default: cell(lstm_step),
    aten.gru_cell.default: cell(gru_step),
    aten.rnn_tanh_cell.default: cell(rnn_step(Tanh())),
    aten.rnn_relu_cell.default: cell(rnn_step(Clamp(0.0))),
    aten.lstm.input: layers(lstm_step, 2),
    aten.gru.input: layers(gru_step, 1),
    aten.rnn_tanh.input: layers(rnn_step(Tanh()), 1),
    aten.rnn_relu.input: layers(rnn_step(Clamp(0.0)), 1),
}
