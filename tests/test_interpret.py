"""What the interpreter says of inputs that do not fit the graph."""

import pytest
import torch
from nets import value

from qcompiler.errors import InputError
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.ops import Add, Clamp


def test_the_number_of_inputs_is_told() -> None:
    x, y = value(2), value(2)
    with pytest.raises(InputError, match=r"expected 1 input \(.*\), got 2"):
        interpret(Graph((x,), (Clamp(lo=0.0)(x),)), torch.ones(2), torch.ones(2))
    with pytest.raises(InputError, match=r"expected 2 inputs \(.*\), got 1"):
        interpret(Graph((x, y), (Add()(x, y),)), torch.ones(2))
