"""Recurrent layers, unrolled, equal PyTorch's."""

import pytest
import torch
from torch import nn

from qcompiler.ops import Linear, Matmul

X = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))  # steps, batch, width

LAYERS = [
    nn.LSTM(4, 5),
    nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
    nn.LSTM(4, 5, bias=False),
    nn.GRU(4, 5, 2, bidirectional=True, dropout=0.5),
    nn.GRU(4, 5, bias=False, batch_first=True),
    nn.RNN(4, 5, 2),
    nn.RNN(4, 5, nonlinearity="relu", bidirectional=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(agrees, layer):
    agrees(layer, X)


def test_given_state(agrees):
    h, c = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    agrees(nn.LSTM(4, 5, 2), X, (h, c))
    agrees(nn.GRU(4, 5, 2), X, h)


def test_without_a_batch(agrees):
    agrees(nn.LSTM(4, 5), X[:, 0])


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)], ids=str)
def test_cell(agrees, cell):
    agrees(cell, X[0])


def test_input_products_are_made_once(agrees):
    graph = agrees(nn.LSTM(4, 5), X, (torch.randn(1, 3, 5), torch.randn(1, 3, 5)))
    products = [n for n in graph.nodes() if isinstance(n.op, Linear | Matmul)]
    assert len(products) == 1 + len(X), "one for all inputs, one per step for the state"


def test_symbolic_batch(agrees):
    batch = torch.export.Dim("batch", min=1, max=8)
    state = torch.zeros(1, 3, 5)
    agrees(
        nn.GRU(4, 5), X, state, dynamic={"input": {1: batch}, "hx": {1: batch}},
        others=[(torch.randn(7, n, 4), torch.randn(1, n, 5)) for n in (1, 6)],
    )  # fmt: skip


def test_longest_that_is_unrolled(agrees):
    agrees(nn.RNN(2, 2), torch.randn(64, 1, 2))
