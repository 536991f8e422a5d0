"""At least 200 random integer layers: the compiled codes are the interpreter's, bit for bit."""

import pytest
import torch
from random_layers import PER_MODULE, module, values
from torch import nn

import qcompiler as qc
from qcompiler import targets
from qcompiler.interpret import interpret

MODULES = 8
HERE = [t.name for t in targets.DONE if targets.host_features().issuperset(t.features)]
NATIVE = targets.native().name


@pytest.mark.parametrize("seed", range(MODULES))
def test_random_layers(seed):
    compare(seed, NATIVE)


@pytest.mark.parametrize("name", [n for n in HERE if n != NATIVE])
@pytest.mark.parametrize("seed", range(MODULES // 2))
def test_other_targets_of_this_machine(seed, name):
    compare(seed, name)


def compare(seed: int, name: str) -> None:
    graph = module(seed)
    x = values(graph, seed)
    compiled = qc.build(graph, name)(*x)
    for node, ours, oracle in zip(graph.outputs, compiled, interpret(graph, *x), strict=True):
        assert ours.dtype == oracle.dtype and ours.shape == oracle.shape, node
        wrong = int((ours != oracle).sum())
        assert wrong == 0, f"{wrong} of {oracle.numel()} values differ: {node!r}"


def test_there_are_200():
    assert PER_MODULE * MODULES >= 200


FILLED = {
    "padded": lambda: (nn.Identity(), nn.Conv2d(8, 4, 3, padding=1)),
    "padded-strided": lambda: (nn.Identity(), nn.Conv2d(8, 32, 5, padding=2, stride=2)),
    "dilated": lambda: (nn.Identity(), nn.ConvTranspose2d(8, 4, 3, stride=2)),
    "pooled": lambda: (nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, padding=1)),
    "pad": lambda: (nn.ConstantPad2d(1, 0.0), nn.Linear(12, 5)),
    "pad-of-a-code": lambda: (nn.ConstantPad2d(1, -0.4), nn.Linear(12, 5)),
}


@pytest.mark.parametrize("case", FILLED)
def test_borders_hold_codes_that_the_tensor_itself_does_not(case):
    """A clamp below zero narrows the codes to a few, without the zero point; a border has it, and
    16-bit sums must be proven for it, too."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1), nn.Hardtanh(-0.5, -0.3)
    net = nn.Sequential(*first, *FILLED[case]()).eval()
    data = [torch.randn(2, 3, 10, 10) for _ in range(4)]
    quant = qc.quantize(qc.trace(net, (data[0],)), data)
    assert torch.equal(qc.build(quant)(data[1]), qc.interpret(quant, data[1]))


@pytest.mark.parametrize(("channels", "pair"), [(1528, (764, 768)), (4000, (2000, 2004))])
def test_panels_are_cut_where_groups_of_instructions_begin(channels, pair):
    """Weights that fit where the instruction adds them, and would not one step further."""
    net = nn.Linear(channels, 32, bias=False).eval()
    with torch.no_grad():
        net.weight.zero_()
        net.weight[:, list(pair)] = 1.0
    x = torch.ones(1, channels)
    quant = qc.quantize(qc.trace(net, (x,)), [x])
    assert torch.equal(qc.build(quant)(x), qc.interpret(quant, x))
