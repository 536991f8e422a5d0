"""Picks: against every combination of options."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.passes.picks import NANOSECONDS, least_noise

Unit = list[tuple[float, float]]
NUMBERS = st.sampled_from([0.0, 1e-6, 0.003, 0.5, 1.0, 1.5, 7.25, 1e3])
OPTION = st.tuples(NUMBERS | st.floats(0.001, 5e3), NUMBERS | st.floats(1e-4, 1.0))
UNITS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def totals(units: list[Unit], picks: tuple[int, ...]) -> tuple[int, float]:
    chosen = [row[k] for row, k in zip(units, picks, strict=True)]
    return sum(round(us * NANOSECONDS) for us, _ in chosen), math.fsum(n for _, n in chosen)


@given(UNITS, st.data())
@settings(max_examples=150, deadline=None)
def test_no_others_have_less_noise_in_that_time(units: list[Unit], data: st.DataObject) -> None:
    limit = tuple(data.draw(st.integers(0, len(row) - 1)) for row in units)
    most, before = totals(units, limit)
    picks = least_noise(units, limit)
    time, noise = totals(units, picks)
    every = itertools.product(*(range(len(row)) for row in units))
    best = min(n for t, n in (totals(units, p) for p in every) if t <= most)
    largest = max(n for row in units for _, n in row)
    assert time <= most and noise <= before
    assert noise <= best + 1e-8 * largest
    assert picks == least_noise(units, limit)


def test_twelve_units_of_four_options() -> None:
    """4^12 combinations, by dynamic programming over whole nanoseconds."""
    units = [
        [(1 + (7 * k + 3 * j) % 5 + j, (1 + k % 3) / (1 + j + k % 2)) for j in range(4)]
        for k in range(12)
    ]
    limit = (1,) * 12
    most, _ = totals(units, limit)
    best = {0: 0.0}
    for row in units:
        following: dict[int, float] = {}
        for (t, n), (us, noise) in itertools.product(best.items(), row):
            at = t + round(us * NANOSECONDS)
            following[at] = min(following.get(at, math.inf), n + noise)
        best = following
    time, noise = totals(units, least_noise(units, limit))
    assert time <= most
    assert math.isclose(noise, min(n for t, n in best.items() if t <= most), rel_tol=1e-9)


def test_nothing_to_pick() -> None:
    assert least_noise([], []) == ()
    assert least_noise([[(1.0, 0.0)]], [0]) == (0,)
