"""Integer plan: which nodes compute in integers, which tensors are held as codes, and why not."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.op import Compute, Elementwise, Fixed, Float, Same, Unary
from qcompiler.ops import (
    Add,
    AvgPool2d,
    Clamp,
    Const,
    Conv2d,
    LeakyRelu,
    Linear,
    Matmul,
    Mul,
    Prelu,
)  # fmt: skip
from qcompiler.recipe import Activations, Recipe
from qcompiler.types import DType, Scheme

from .schemes import ACTIVATION, NARROW, ROWS, WEIGHT

SUMS = (Conv2d, Linear, Matmul, Add, Mul, AvgPool2d)  # their integer form ends in int32
EPILOGUES = (Clamp, LeakyRelu, Prelu)  # applied to int32 sums while they are requantized

NO_READER = "no integer op reads its result"
FLOAT_OPERAND = "an operand is computed in float"


def is_anchor(node: Node) -> bool:
    """Matmul, linear and convolution with constant weights: what integers pay for."""
    if isinstance(node.op, Matmul):
        return True
    return isinstance(node.op, Conv2d | Linear) and isinstance(node.inputs[1].op, Const)


def table_shaped(node: Node) -> bool:
    """An elementwise op of one tensor and scalar constants: a table once on codes."""
    others = [i for i in node.inputs if not isinstance(i.op, Const)]
    scalars = [i for i in node.inputs if isinstance(i.op, Const)]
    one = len(others) == 1 and all(i.tensor.shape == () for i in scalars)
    return isinstance(node.op, Elementwise) and one


def operands(node: Node) -> list[Node]:
    """The inputs that are activations."""
    return [i for i in node.inputs if not isinstance(i.op, Const)]


@dataclass(frozen=True)
class Plan:
    """The graph's users, the context, why layers are to be float, and nodes stay so so far."""

    users: dict[Node, list[Node]]
    ctx: Context
    floats: Mapping[Node, str]
    reasons: dict[Node, str]

    def integer(self, node: Node) -> bool:
        return node not in self.reasons

    def ends_in_sums(self, node: Node) -> bool:
        """Whether the integer form of the node is int32 sums that some requantize follows."""
        return isinstance(node.op, SUMS) and not table_shaped(node)

    def absorbed(self, node: Node) -> bool:
        """Whether the node is only the sums that its one user's requantize takes in."""
        users = self.users[node]
        return (
            self.ends_in_sums(node)
            and len(users) == 1
            and isinstance(users[0].op, EPILOGUES)
            and users[0].inputs[0] is node
            and self.integer(users[0])
        )


def unfit(node: Node, plan: Plan) -> str | None:
    """Why a node on its own cannot compute in integers; None when it can."""
    recipe, target = plan.ctx.recipe, plan.ctx.target
    static = recipe.activations is Activations.STATIC
    if recipe.activations is Activations.NONE:
        return f"recipe {recipe.name} keeps everything in float"
    if any(goes_by(node, path) for path in recipe.keep_float):
        return "kept in float by the recipe"
    if node in plan.floats:
        return plan.floats[node]
    if recipe.activations is Activations.FLOAT:
        return f"recipe {recipe.name} keeps activations in float"
    if isinstance(node.op.quant, Float):
        return node.op.quant.reason
    if any(i.tensor.dtype is not DType.FLOAT32 for i in node.inputs):
        return "an operand is not float32"
    if not static and not (isinstance(node.op, Linear) and is_anchor(node)):
        return f"recipe {recipe.name} quantizes only linear layers"
    reason = _no_integer_form(node, plan)
    return reason or (target.refuses_integer(node) if target is not None else None)


def weight_only(node: Node, recipe: Recipe) -> bool:
    """Whether a float layer reads its weight as codes."""
    return (
        recipe.activations is Activations.FLOAT
        and isinstance(node.op, Linear)
        and is_anchor(node)
        and all(i.tensor.dtype is DType.FLOAT32 for i in node.inputs)
        and not any(goes_by(node, path) for path in recipe.keep_float)
    )


def goes_by(node: Node, path: str) -> bool:
    """Whether the node, a constant of it, or the module it comes from has that name or lies below
    it: what is folded into a layer leaves it with the constants' old names."""
    names = [node.name, node.note.origin.split(" ")[0]]
    names += [i.name for i in node.inputs if isinstance(i.op, Const)]
    return any(f"{name}.".startswith(f"{path}.") for name in names)


def _no_integer_form(node: Node, plan: Plan) -> str | None:
    op = node.op
    if isinstance(op, Conv2d | Linear):
        return None if is_anchor(node) else "its weight is not constant"
    if isinstance(op.quant, Same) or isinstance(op, Unary | Clamp | Matmul | AvgPool2d):
        return None
    if table_shaped(node):
        return None
    if isinstance(op, Add | Mul):
        tensors = len(operands(node)) == 2
        return None if tensors else "a constant tensor operand is not folded into a layer"
    if isinstance(op, Prelu):
        alone = len(plan.users[node.inputs[0]]) == 1 and plan.ends_in_sums(node.inputs[0])
        return None if alone else "it does not directly follow a layer"
    return f"{op.kind} has no integer form"


def stranded(node: Node, plan: Plan) -> str | None:
    """Why integers do not pay for a node given its neighbours."""
    if is_anchor(node):
        return None
    if not any(plan.integer(u) for u in plan.users[node]):
        return NO_READER
    if not all(plan.integer(i) for i in operands(node)) or not operands(node):
        return FLOAT_OPERAND
    return None


def plan_of(graph: Graph, ctx: Context, floats: Mapping[Node, str] = MappingProxyType({})) -> Plan:
    """Start with every node that has an integer form; drop the stranded ones until none is.

    floats: layers that are to be float all the same, and why.
    """
    users = graph.users()
    plan = Plan(users, ctx, floats, {})
    for node in users:
        reason = unfit(node, plan) if node.inputs else "an input"
        if reason is not None:
            plan.reasons[node] = reason
    drop_stranded(plan)
    return plan


def drop_stranded(plan: Plan) -> None:
    """Sweeps in graph order until none is stranded; after the first only over what may have
    changed, the neighbours of what was dropped."""
    order = list(plan.users)
    index = {node: k for k, node in enumerate(order)}
    waiting = [(0, k) for k in range(len(order))]  # (sweep, position): a heap as it stands
    while waiting:
        sweep, k = heapq.heappop(waiting)
        node = order[k]
        reason = None if node in plan.reasons else stranded(node, plan)
        if reason is None:
            continue
        plan.reasons[node] = reason
        for near in {index[n] for n in (*node.inputs, *plan.users[node])}:
            heapq.heappush(waiting, (sweep + (near < k), near))


def held_as_codes(node: Node, plan: Plan) -> bool:
    """Whether some integer op reads the node's value as codes."""
    if isinstance(node.op, Const) or plan.absorbed(node):
        return False
    return any(plan.integer(u) for u in plan.users[node])


def noted(graph: Graph, plan: Plan) -> tuple[Graph, dict[Node, Node]]:
    """The graph with the plan in its notes, in the place of what they had of an earlier one, and
    what became of each node."""
    new: dict[Node, Node] = {}
    for node in plan.users:
        inputs = [new[i] for i in node.inputs]
        if isinstance(node.op, Conv2d | Linear):
            coded = plan.integer(node) or weight_only(node, plan.ctx.recipe)
            scheme = _weight_scheme(plan.ctx.recipe) if coded else None
            if inputs[1].note.scheme != scheme:
                inputs[1] = inputs[1].with_note(scheme=scheme)
        new[node] = planned(node.with_inputs(inputs), node, plan)
    return graph.rebuilt(new, recipe=plan.ctx.recipe.name), new


def planned(node: Node, source: Node, plan: Plan) -> Node:
    """The node with what was decided for it."""
    changes: dict[str, object] = {}
    if not isinstance(node.op, Const):
        held = held_as_codes(source, plan)
        changes["scheme"] = _scheme(plan.ctx.recipe) if held else None
    if isinstance(source.op.quant, Compute | Fixed | Same | Float) and source.inputs:
        integer = plan.integer(source)
        changes["precision"] = DType.INT8 if integer else DType.FLOAT32
        changes["reason"] = "" if integer else plan.reasons[source]
    return node.with_note(**changes) if changes else node


def _weight_scheme(recipe: Recipe) -> Scheme:
    return replace(NARROW, group=recipe.group) if recipe.group else WEIGHT


def _scheme(recipe: Recipe) -> Scheme:
    return ROWS if recipe.activations is Activations.DYNAMIC else ACTIVATION
