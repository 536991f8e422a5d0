"""Picks: one option for each unit, of least noise within a time."""

from __future__ import annotations

from collections.abc import Sequence

NANOSECONDS = 1000.0
"""Of a microsecond. Times are compared in whole nanoseconds, so that sums of them are exact."""
RANGE = 1e3
"""The largest noise, as the solver sees it: differences of 1e-9 of that are its tolerance."""
OPTIMAL = 0  # scipy.optimize.milp's status


def least_noise(
    units: Sequence[Sequence[tuple[float, float]]], limit: Sequence[int]
) -> tuple[int, ...]:
    """The index of each unit's option, so that the sum of noise is least and the time no more than
    that of the options in `limit`; those themselves where nothing better is found.

    units: (microseconds, noise) of the options of each. A multiple-choice knapsack, solved as a
    mixed-integer program by HiGHS without a gap: optimal up to its tolerances, and with the same
    answer for the same input. What it finds is added up again, so the time is never exceeded.
    """
    import numpy as np
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import block_diag, csr_array

    if not units:
        return ()
    times = np.array([round(us * NANOSECONDS) for row in units for us, _ in row], float)
    noise = np.array([value for row in units for _, value in row])
    starts = np.cumsum([0, *map(len, units)])
    most = times[starts[:-1] + np.array(limit)].sum()
    one = block_diag([np.ones((1, len(row))) for row in units], format="csr")
    largest = noise.max() or 1.0
    budget = LinearConstraint(csr_array(times[None]), 0, most)
    result = milp(
        noise * (RANGE / largest),
        integrality=np.ones(len(noise)),
        bounds=(0, 1),
        constraints=[LinearConstraint(one, 1, 1), budget],
        options={"mip_rel_gap": 0.0},
    )
    if result.status != OPTIMAL:
        return tuple(limit)
    chosen = np.flatnonzero(result.x > 0.5) - starts[:-1]
    found = tuple(map(int, chosen))
    flat = starts[:-1] + chosen
    better = noise[flat].sum() < noise[starts[:-1] + np.array(limit)].sum()
    return found if better and times[flat].sum() <= most else tuple(limit)
