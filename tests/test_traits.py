"""Words: what they say of tensors whose trouble is known, and that they are silent else."""

import pytest
import torch

from qcompiler.stats import EMPTY, Stats
from qcompiler.traits import described, kurtosis


def told(x: torch.Tensor) -> str:
    return described(Stats.of(x))


def test_normal_values_need_no_words() -> None:
    torch.manual_seed(0)
    assert told(torch.randn(64, 32)) == "" and described(EMPTY) == ""
    assert told(torch.zeros(3)) == "" and told(torch.full((4, 4), 2.0)) == ""


def test_kurtosis_is_that_of_the_values() -> None:
    torch.manual_seed(0)
    for x in (torch.randn(100000), torch.rand(100000), torch.randn(100000) ** 3):
        centred = x.double() - x.double().mean()
        exact = float((centred**4).mean() / (centred**2).mean() ** 2)
        assert kurtosis(Stats.of(x)) == pytest.approx(exact, rel=0.01)
    assert "heavy tails (kurtosis" in told(torch.randn(100000) ** 3)


def test_channels_are_told() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096, 16).clamp(-2, 2)
    x[:, 3] *= 50
    assert "one channel 50 times the median one" in told(x)
    x[:, 5:7] = 0
    assert "2 of 16 channels always 0" in told(x)
