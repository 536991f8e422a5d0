"""Read codes: errors arise where codes are read, and nowhere else."""

import torch
from torch import nn

import qcompiler as qc
from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.interpret import interpret, run
from qcompiler.passes.insert_qdq import integer
from qcompiler.passes.read_codes import Reads
from qcompiler.pipeline import Pipeline
from qcompiler.recipe import recipe_of
from qcompiler.targets import get


class Residual(nn.Module):
    """What a norm gives is read by a layer as codes, and added to as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.last = nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.last(y + torch.exp(self.layer(y)))


def test_float_readers_see_no_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16)
    graph = qc.trace(Residual().eval(), (x,))
    steps = passes.QUANTIZE[: [p.name for p in passes.QUANTIZE].index("assign-precision") + 1]
    plan = Pipeline(steps)(graph, Context(get("x86-64-v3"), recipe_of("int8"), [x], sample=(x,)))
    norm = next(n for n in plan.nodes() if n.note.scheme is not None and not integer(n)
                and n.op.kind == "layer_norm")  # fmt: skip
    reads = Reads.of(plan)
    assert torch.equal(interpret(reads.graph, x), interpret(plan, x))
    # All weights of the layer are zero: nothing that it reads matters.
    assert moved(plan, norm, x) > 1e-3
    assert moved(reads.graph, reads.values[norm], x) == 0


def moved(graph: Graph, node: Node, x: torch.Tensor) -> float:
    """How far the outputs are moved by an error in the node's value."""
    (y,) = run(graph, (x,))
    (z,) = run(graph, (x,), change=lambda n, v: v + torch.randn_like(v) if n is node else v)
    return float((y - z).detach().square().sum())
