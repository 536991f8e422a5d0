"""The signal-to-quantization-noise ratio by its definition."""

import math

import numpy as np
import pytest
import torch

import qcompiler as qc
from qcompiler.graph import Graph
from qcompiler.ops import Add, Compare, Input, Mul, Relation, const
from qcompiler.report import sqnr, sqnr_of_outputs
from qcompiler.rewrite import named
from qcompiler.types import DType, TensorType


def test_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    reference = np.array([3.0, -4.0])
    assert sqnr(reference, reference * 1.1) == pytest.approx(20.0)
    assert sqnr(torch.tensor(reference), torch.tensor(reference * 0.99)) == pytest.approx(40.0)


def test_one_bit_more_is_worth_six_decibels() -> None:
    values = np.linspace(-1, 1, 100_001)

    def rounded(bits: int) -> np.ndarray:
        return np.rint(values * 2**bits) / 2**bits

    gain = sqnr(values, rounded(8)) - sqnr(values, rounded(7))
    assert gain == pytest.approx(20 * math.log10(2), abs=0.1)


@pytest.mark.parametrize(
    ("reference", "value", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf),
        ([0.0, 0.0], [0.0, 1.0], -math.inf),
        ([0.0], [0.0], math.inf),
        ([-math.inf, 2.0], [-math.inf, 1.8], 20.0),
    ],
)
def test_edges(reference: list[float], value: list[float], expected: float) -> None:
    assert sqnr(np.array(reference), np.array(value)) == pytest.approx(expected)


@pytest.mark.parametrize("value", [[math.nan, 1.0], [math.inf, 1.0]])
def test_a_value_that_is_no_number_gives_nan(value: list[float]) -> None:
    assert math.isnan(sqnr(np.array([1.0, 1.0]), np.array(value)))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected equal shapes, got \[2\] and \[1\]"):
        sqnr(np.ones(2), np.ones(1))


def outputs(factor: float) -> Graph:
    x = Input(TensorType((4,), DType.FLOAT32))(name="x")
    scaled = Mul()(x, const(factor), name="scaled")
    positive = Compare(Relation.GT)(x, const(0.0), name="positive")
    return named(Graph((x,), (scaled, positive, Add()(x, x, name="twice"))))


def test_outputs_are_compared_over_all_samples() -> None:
    samples = [(torch.tensor([1.0, 2.0, 3.0, 4.0]),), (torch.full((4,), 100.0),)]
    found = sqnr_of_outputs(outputs(1.0), outputs(0.9), samples)
    assert found == {"scaled": pytest.approx(20.0, abs=1e-3), "twice": math.inf}
    assert qc.interpret(outputs(0.9), samples[0][0])[0][0] == pytest.approx(0.9)
