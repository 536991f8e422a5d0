"""Statistics: an exact monoid, held to numpy on the raw values."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.stats import BLOCK, CELLS, EMPTY, MANTISSA_BITS, UNBOUNDED, Stats

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANY = st.one_of(FLOATS, st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, -3.4e38]))


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def range_part(s: Stats) -> tuple[object, ...]:
    """What ranges are chosen from, as bytes and exact numbers."""
    c = s.channels
    channels = c and (c.low.tobytes(), c.high.tobytes(), c.counts.tobytes())
    numbers = (s.count, s.masked, s.infinite, s.nan, s.low.hex(), s.high.hex())
    return (*numbers, s.cells.tobytes(), s.counts.tobytes(), channels)


def raw(s: int, *shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(s)
    x = torch.randn(*shape, generator=g)
    return x * torch.exp(torch.randn(*shape, generator=g) * 2)


@given(st.lists(ANY, max_size=30), st.lists(ANY, max_size=30), st.lists(ANY, max_size=30))
def test_merge_is_a_commutative_monoid(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = (Stats.of(tensor(v).reshape(-1, 1)) for v in (a, b, c))
    assert x.merge(y) == y.merge(x)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(EMPTY) == x == EMPTY.merge(x)


@given(st.lists(ANY, min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_batching_and_order_do_not_show(values: list[float], random: object) -> None:
    whole = Stats.of(tensor(values).reshape(-1, 1))
    singles = [Stats.of(tensor([v]).reshape(-1, 1)) for v in values]
    random.shuffle(singles)  # type: ignore[attr-defined]
    merged = EMPTY
    for s in singles:
        merged = merged.merge(s)
    assert range_part(merged) == range_part(whole)


@pytest.mark.parametrize("shape", [(16, 3, 9, 7), (16, 5, 11), (16, 33)])
def test_batches_of_1_and_8_shuffled(shape: tuple[int, ...]) -> None:
    x = raw(0, *shape)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    by_one, by_eight = EMPTY, EMPTY
    for k in order:
        by_one = by_one.merge(Stats.of(x[k : k + 1]))
    for k in (8, 0):
        by_eight = by_eight.merge(Stats.of(x[k : k + 8]))
    assert range_part(by_one) == range_part(by_eight) == range_part(Stats.of(x))
    again = EMPTY
    for k in order.flip(0):
        again = again.merge(Stats.of(x[k : k + 1]))
    assert again.digest == by_one.digest  # the same pieces: moments, too


def test_the_digest_sees_every_part() -> None:
    x = raw(3, 2, 3, 4, 5)
    base = Stats.of(x)
    swapped = x.clone()
    swapped[:, 0], swapped[:, 1] = x[:, 1], x[:, 0]
    z = torch.cat([x.reshape(-1), torch.tensor([math.nan])])
    digests = {Stats.of(v).digest for v in (x, swapped, z)} | {EMPTY.digest}
    assert len(digests) == 4
    one_cell = (tensor([1.0, 1.0, 1.004]), tensor([1.0, 1.001, 1.004]))
    assert len({Stats.of(v).digest for v in one_cell}) == 2  # by its moments
    assert Stats.of(x.clone()) == base and hash(Stats.of(x.clone())) == hash(base)


@given(st.lists(FLOATS.filter(lambda v: abs(v) < UNBOUNDED), min_size=1, max_size=60))
def test_every_value_lies_in_the_cell_that_counts_it(values: list[float]) -> None:
    s = Stats.of(tensor(values))
    h = s.histogram()
    x = np.sort(tensor(values).double().numpy())
    assert h.counts.sum() == len(x) and (h.counts > 0).all()
    assert (h.lower <= h.upper).all() and (h.upper[:-1] <= h.lower[1:]).all()
    assert h.lower[0] == x[0] and h.upper[-1] == x[-1]
    ends = np.cumsum(h.counts)
    for lower, upper, a, b in zip(h.lower, h.upper, ends - h.counts, ends, strict=True):
        assert ((lower <= x[a:b]) & (x[a:b] <= upper)).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cells_are_as_narrow_as_said(sign: float) -> None:
    h = Stats.of(sign * raw(5, 20_000).abs().clamp(min=1e-30)).histogram()
    magnitude = np.minimum(np.abs(h.lower), np.abs(h.upper))
    assert ((h.upper - h.lower) <= magnitude * 2.0**-MANTISSA_BITS).all()


@given(
    st.lists(FLOATS.filter(lambda v: abs(v) < UNBOUNDED), min_size=1, max_size=60),
    st.integers(0, 64),
)
def test_quantile_holds_the_order_statistic(values: list[float], eighths: int) -> None:
    share = eighths / 64
    x = np.sort(tensor(values).double().numpy())
    rank = max(math.ceil(Fraction(eighths, 64) * len(x)), 1)
    lower, upper = Stats.of(tensor(values)).quantile(share)
    assert lower <= x[rank - 1] <= upper


def test_moments_match_float64() -> None:
    x = raw(7, 4, 3, 37, 41)
    d = x.double()
    s = Stats.of(x[:2]).merge(Stats.of(x[2:]))
    assert x.numel() > 2 * BLOCK and s.count == x.numel()
    assert s.mean == pytest.approx(float(d.mean()), abs=1e-6 * float(d.abs().mean()))
    assert s.variance == pytest.approx(float(d.var(unbiased=False)), rel=1e-6)


def test_squares_beyond_float32() -> None:
    s = Stats.of(torch.full((2 * BLOCK + 3,), 2.0**70))
    assert (s.mean, s.variance) == (2.0**70, pytest.approx(0.0, abs=2.0**100))
    assert s.squares / s.count == pytest.approx(2.0**140)


def test_what_is_left_out_of_ranges() -> None:
    x = torch.tensor([[1.0, -math.inf], [math.nan, torch.finfo(torch.float32).min], [3, math.inf]])
    s = Stats.of(x)
    assert (s.count, s.masked, s.infinite, s.nan, s.seen) == (2, 2, 1, 1, 6)
    assert (s.low, s.high, s.mean) == (1.0, 3.0, 2.0)
    assert s.channels is not None
    assert s.channels.low.tolist() == [1.0, math.inf]
    assert s.channels.high.tolist() == [3.0, -math.inf]
    assert s.channels.counts.tolist() == [2, 0]
    assert s.channels.means[0] == 2.0 and math.isnan(s.channels.means[1])


def test_nothing_finite_and_nothing_at_all() -> None:
    s = Stats.of(torch.full((3,), -math.inf))
    assert (s.count, s.masked, s.low, s.high) == (0, 3, math.inf, -math.inf)
    assert math.isnan(s.mean) and math.isnan(s.variance)
    assert Stats.of(torch.zeros(0, 4)) == EMPTY
    with pytest.raises(ValueError, match="at least one finite value"):
        s.quantile(0.5)
    assert s.merge(Stats.of(torch.ones(3))).high == 1.0


def test_signed_zeros_are_one_extreme() -> None:
    a, b = Stats.of(tensor([0.0, -0.0])), Stats.of(tensor([-0.0, 0.0]))
    assert a.low.hex() == b.low.hex() == a.high.hex() == "0x0.0p+0"
    assert Stats.of(tensor([-0.0])).low.hex() == "0x0.0p+0"


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3, 4, 5), 1), ((2, 3, 5), 2), ((4, 5), 1), ((5,), 0)]
)
def test_extremes_and_means_per_channel(shape: tuple[int, ...], axis: int) -> None:
    x = raw(2, *shape)
    rest = tuple(k for k in range(len(shape)) if k != axis)
    s = Stats.of(x)
    assert s.channels is not None
    assert np.array_equal(s.channels.low, x.numpy().min(rest))
    assert np.array_equal(s.channels.high, x.numpy().max(rest))
    assert s.channels.means == pytest.approx(x.double().numpy().mean(rest), rel=1e-5, abs=1e-6)
    first = Stats.of(x, 0).channels
    assert first is not None and len(first.low) == shape[0]


@given(
    st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(-120, 90)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_sums_per_channel_are_exact_in_any_order(
    terms: list[tuple[float, int]], random: object
) -> None:
    """Terms of far different size, which float64 would lose in one order and keep in another."""
    values = tensor([math.ldexp(m, e) for m, e in terms])
    parts = [Stats.of(torch.stack((v, -v)).reshape(1, 2)) for v in values]
    exact = sum((Fraction(float(v)) for v in values), Fraction(0))
    for _ in range(2):
        random.shuffle(parts)  # type: ignore[attr-defined]
        merged = EMPTY
        for part in parts:
            merged = merged.merge(part)
        c = merged.channels
        assert c is not None
        units = sum(
            (int(v) * Fraction(2) ** (16 * (c.first + k)) for k, v in enumerate(c.sums[0])),
            Fraction(0),
        )
        assert units == exact
        rounding = 1e-12 * float(values.abs().sum())
        assert c.totals[0] == pytest.approx(float(exact), rel=1e-9, abs=rounding)
        assert c.totals[1] == -c.totals[0]
        assert c.sums.shape[1] == 0 or (c.sums[:, 0].any() and c.sums[:, -1].any())


def test_a_number_of_channels_that_varies_gives_none() -> None:
    a, b = Stats.of(torch.ones(1, 3)), Stats.of(torch.ones(1, 4))
    assert a.merge(b).channels is None and a.merge(b).merge(a).channels is None
    assert a.merge(b).count == 7


def test_a_scalar() -> None:
    s = Stats.of(torch.tensor(2.5))
    assert (s.count, s.low, s.high, s.mean) == (1, 2.5, 2.5, 2.5)


def test_views_count_as_what_they_show() -> None:
    x = raw(4, 6, 8)
    assert range_part(Stats.of(x.T.contiguous(), 0)) == range_part(Stats.of(x.T, 0))
    assert range_part(Stats.of(x[:, ::2])) == range_part(Stats.of(x[:, ::2].contiguous()))


def test_only_float32() -> None:
    with pytest.raises(TypeError, match=r"expected float32, got torch\.float64"):
        Stats.of(torch.ones(3, dtype=torch.float64))


@given(st.lists(ANY, max_size=30), st.booleans())
def test_tensors_and_pickle_give_it_back(values: list[float], vary: bool) -> None:
    s = Stats.of(tensor(values).reshape(-1, 1))
    s = s.merge(Stats.of(torch.ones(1, 2))) if vary else s
    back = Stats.from_tensors(s.to_tensors())
    assert back == s and range_part(back) == range_part(s)
    assert (back.total, back.squares) == (s.total, s.squares)
    assert pickle.loads(pickle.dumps(s)) == s


def test_memory_stays_bounded() -> None:
    """Heavy tails over every binade: hundreds of such tensors stay below 100 MB."""
    s = EMPTY
    for k in range(20):
        s = s.merge(Stats.of(raw(k, 1, 16, 64, 64) * 2.0 ** (k - 10)))
    assert s.channels is not None
    assert s.cells.nbytes + s.counts.nbytes + s.channels.nbytes < 250_000
    assert len(s.cells) <= CELLS
