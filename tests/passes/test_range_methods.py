"""Range methods, held to brute force over the raw values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import arith
from qcompiler.passes.range_methods import (
    PARTS,
    Codes,
    choose_range,
    divergence,
    mean_squared_error,
    percentile_range,
    search,
)
from qcompiler.recipe import RangeMethod
from qcompiler.stats import EMPTY, Histogram, Stats

U8 = Codes(0, 255)
S8 = Codes(-127, 127, symmetric=True)
SIZE = 60_000


def normal(seed: int = 0, n: int = SIZE) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int = 0, n: int = SIZE) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


SAMPLES: dict[str, torch.Tensor] = {
    "normal": normal(),
    "shifted": normal() * 0.5 + 3.0,
    "relu": normal().relu(),
    "relu6": (normal() * 5).clamp(0, 6),
    "silu": torch.nn.functional.silu(normal() * 3),
    "negative": -normal().abs() - 0.1,
    "laplace": normal().sign() * -torch.log(1 - uniform()),
    "outlier": torch.cat([normal(), torch.tensor([-40.0])]),
    "heavy": normal() / uniform(1).clamp(min=1e-3).sqrt(),
    "tiny": normal() * 1e-12,
    "large": normal() * 1e9,
}


def real_error(x: torch.Tensor, codes: Codes, span: tuple[float, float]) -> float:
    """The mean squared error of the law's own quantize and dequantize, in float64."""
    scale, zp = codes.params(span)
    law = arith.TORCH
    q = arith.quantize(law, x, arith.inverse(scale), zp, codes.qmin, codes.qmax, "int32")
    back = arith.dequantize(law, q, scale, zp)
    return float((x.double() - back.double()).square().mean())


def clipped_spans(x: torch.Tensor, count: int = 60) -> list[tuple[float, float]]:
    """Ranges clipped at a magnitude, and at each end alone."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shares = np.geomspace(1.0, 1 / 50, count).tolist()
    top = max(-low, high)
    spans = [(max(low, -top * f), min(high, top * f)) for f in shares]
    return spans + [(low * f, high) for f in shares] + [(low, high * f) for f in shares]


@pytest.mark.parametrize("codes", [U8, S8, Codes(0, 15)])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_error_of_a_histogram_is_that_of_the_values(name: str, codes: Codes) -> None:
    x = SAMPLES[name]
    h = Stats.of(x).histogram()
    for span in clipped_spans(x, 8):
        expected = real_error(x, codes, span)
        assert mean_squared_error(h, *codes.params(span), codes) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("codes", [U8, S8, Codes(0, 15)])
@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_as_good_as_brute_force(name: str, codes: Codes) -> None:
    x = SAMPLES[name]
    chosen = choose_range(Stats.of(x), RangeMethod.MSE, 100.0, codes)
    best = min(real_error(x, codes, span) for span in clipped_spans(x))
    assert real_error(x, codes, chosen) <= best * 1.02


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12),
    st.floats(-4, 0),
    st.floats(0.25, 4),
)
def test_error_of_cells_against_a_sum_over_many_points(
    values: list[float], low: float, high: float
) -> None:
    """Each cell spread out as points: the integral in closed form, to the spacing of the points."""
    h = Stats.of(torch.tensor(values)).histogram()
    codes = Codes(0, 15)
    scale, zp = codes.params((low, high))
    total = 0.0
    for lower, upper, count in zip(h.lower, h.upper, h.counts, strict=True):
        points = lower + (upper - lower) * (np.arange(400) + 0.5) / 400
        q = np.clip(np.rint(points / scale), codes.qmin - zp, codes.qmax - zp)
        total += float(count) * float(((points - q * scale) ** 2).mean())
    expected = total / len(values)
    found = mean_squared_error(h, scale, zp, codes)
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-6 * scale * scale)


def brute_divergence(x: np.ndarray, scale: float, zp: int, codes: Codes) -> float:
    """The definition of `divergence`, bin by bin over raw values."""
    count = codes.qmax - codes.qmin + 1
    first = (codes.qmin - zp - 0.5) * scale
    bins = np.floor((x - first) / (scale / PARTS)).astype(int)
    reference = [0.0] * (count * PARTS)
    inside = [0.0] * (count * PARTS)
    for b in bins:
        reference[min(max(b, 0), count * PARTS - 1)] += 1
        if 0 <= b < count * PARTS:
            inside[b] += 1
    kept = sum(inside)
    if kept == 0:
        return math.inf
    result = 0.0
    for code in range(count):
        mine = range(code * PARTS, (code + 1) * PARTS)
        used = [b for b in mine if inside[b] > 0]
        each = sum(inside[b] for b in mine) / max(len(used), 1) / kept
        for b in mine:
            if reference[b] > 0:
                p = reference[b] / len(x)
                result += p * math.log(p / max(each if b in used else 0.0, 1 / len(x)))
    return result


@given(
    st.lists(st.integers(-3000, 3000), min_size=1, max_size=80),
    st.integers(1, 60),
    st.integers(0, 15),
)
@settings(max_examples=60)
def test_divergence_against_its_definition(values: list[int], eighths: int, zp: int) -> None:
    """On point masses in the middle of bins, where a histogram of cells is exact."""
    codes, scale = Codes(0, 15), eighths / 8
    x = (np.array(values) + 0.5) * (scale / PARTS)
    points, counts = np.unique(x, return_counts=True)
    h = Histogram(points, points, counts)
    expected = brute_divergence(x, scale, zp, codes)
    assert divergence(h, scale, zp, codes) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "silu", "outlier"])
def test_entropy_is_as_good_as_brute_force(name: str) -> None:
    """Few codes, many values: there the divergence of the values is not noise."""
    x, codes = SAMPLES[name], Codes(0, 15)
    chosen = choose_range(Stats.of(x), RangeMethod.ENTROPY, 100.0, codes)
    raw = x[x != 0].double().numpy()

    def score(span: tuple[float, float]) -> float:
        return brute_divergence(raw, *codes.params(span), codes)

    assert score(chosen) <= min(map(score, clipped_spans(x, 12))) * 1.05


def test_entropy_clips_an_outlier_and_keeps_a_spike() -> None:
    low, _ = choose_range(Stats.of(SAMPLES["outlier"]), RangeMethod.ENTROPY, 100.0, U8)
    assert -8 < low < -3
    assert choose_range(Stats.of(SAMPLES["relu6"]), RangeMethod.ENTROPY, 100.0, U8) == (0.0, 6.0)


@pytest.mark.parametrize("score", [mean_squared_error, divergence])
def test_a_third_round_of_the_search_changes_little(
    score: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.passes import range_methods

    for name in ("normal", "laplace", "relu", "silu"):
        h = Stats.of(SAMPLES[name]).histogram()
        two = score(h, *U8.params(search(h, U8, score)), U8)
        monkeypatch.setattr(range_methods, "SEARCH_ROUNDS", 3)
        three = score(h, *U8.params(search(h, U8, score)), U8)
        monkeypatch.undo()
        assert three >= two * 0.999


def clipped_share(x: torch.Tensor, span: tuple[float, float]) -> tuple[float, float]:
    return float((x < span[0]).double().mean()), float((x > span[1]).double().mean())


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", SAMPLES)
def test_percentile_against_sorted_values(name: str, percentile: float) -> None:
    """No tail loses more than its share, and a range narrower by one cell would lose more."""
    x = SAMPLES[name]
    outside = 1 - percentile / 100
    low, high = percentile_range(Stats.of(x), percentile)
    below, above = clipped_share(x, (low, high))
    two_sided = float(x.min()) < 0 < float(x.max())
    allowed = outside / 2 if two_sided else outside
    slack = 1.5 / len(x)
    assert below <= allowed + slack and above <= allowed + slack
    if two_sided or float(x.min()) >= 0:
        assert clipped_share(x, (low, high * (1 - 2.0**-6)))[1] >= allowed - slack
    if two_sided or float(x.max()) <= 0:
        assert clipped_share(x, (low * (1 - 2.0**-6), high))[0] >= allowed - slack


def test_percentile_100_keeps_all() -> None:
    for x in SAMPLES.values():
        assert percentile_range(Stats.of(x), 100.0) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("method", RangeMethod)
def test_ranges_of_few_and_equal_values(method: RangeMethod) -> None:
    def chosen(*values: float) -> tuple[float, float]:
        return choose_range(Stats.of(torch.tensor(values)), method, 99.99, U8)

    assert chosen(0.0, 0.0) == (0.0, 0.0)
    assert chosen(3.0, 3.0) == (3.0, 3.0)
    assert chosen(-2.0) == (-2.0, -2.0)
    assert chosen(-math.inf) == (0.0, 0.0)
    assert choose_range(EMPTY, method, 99.99, U8) == (0.0, 0.0)
    low, high = chosen(0.0, 5.0)
    assert low == 0.0 and 4.9 < high <= 5.0


@pytest.mark.parametrize("method", RangeMethod)
def test_batching_and_order_choose_the_same_bits(method: RangeMethod) -> None:
    x = SAMPLES["silu"].reshape(40, -1)
    whole = choose_range(Stats.of(x), method, 99.9, U8)
    parts = EMPTY
    for k in torch.randperm(40, generator=torch.Generator().manual_seed(0)):
        parts = parts.merge(Stats.of(x[k : k + 1]))
    again = choose_range(parts, method, 99.9, U8)
    assert [v.hex() for v in whole] == [v.hex() for v in again]
    assert all(type(v) is float for v in whole)


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_range_lies_within_the_values(name: str, method: RangeMethod) -> None:
    x = SAMPLES[name]
    low, high = choose_range(Stats.of(x), method, 99.9, U8)
    assert min(float(x.min()), 0.0) <= low <= high <= max(float(x.max()), 0.0)
