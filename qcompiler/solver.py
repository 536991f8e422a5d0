"""Solver: one choice for each region, fastest within a noise or of least noise within a time.

A mixed-integer program: a 0/1 variable for each choice, and for each edge a table of how its ends
meet, whose rows and columns add up to the ends' choices (without circles of edges and limits that
needs no branching). HiGHS solves it, with tolerances: what it finds is added up again, exactly,
cut off where it breaks a limit, and searched on from where HiGHS's bound does not prove it best.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Tables = dict[tuple[int, int], Whole]
    Cut = tuple[frozenset[tuple[int, int]], int]  # (region, choice), and how many at most

TOLERANCE = 1e-9
"""Of the largest noise of a problem: by so much a least noise may be above the true one."""
LONGEST = 10**12
"""ns, of all regions and edges at their slowest. 1 ns of it is what HiGHS still tells apart."""
RANGE = 1e6
"""The largest number as HiGHS sees it: its tolerances are 1e-6 and absolute."""
ROUNDING = 8 * sys.float_info.epsilon
"""Of a limit: what sums of doubles differ by, so that a row never cuts off what is within it."""
OPTIONS = {"mip_rel_gap": 0.0, "presolve": False}
"""Presolved, 5 of 47076 queries had a worse answer or none (HiGHS's issues 1273, 1725, 3094)."""
OPTIMAL, INFEASIBLE = 0, 2  # scipy.optimize.milp's status


@dataclass(frozen=True)
class Choice:
    """What a region can be: its time in whole nanoseconds, and its noise, in any unit."""

    time: int
    noise: float


@dataclass(frozen=True)
class Edge:
    """Nanoseconds between regions a and b: times[i][j] where a takes choice i and b choice j."""

    a: int
    b: int
    times: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Point:
    """An assignment, the index of each region's choice, and what it adds up to."""

    picks: tuple[int, ...]
    time: int
    noise: float


@dataclass(frozen=True)
class Solved:
    """A noise limit and the fastest point within it; None: there is none."""

    limit: float
    point: Point | None

    def answers(self, limit: float) -> bool:
        """A lower limit leaves fewer points: while the best of all is among them, it is theirs."""
        return limit <= self.limit and (self.point is None or self.point.noise <= limit)


@dataclass(frozen=True)
class Problem:
    """Choices of each region, and edges between them. ValueError: what it cannot be, and where."""

    regions: tuple[tuple[Choice, ...], ...]
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        for r, row in enumerate(self.regions):
            _expect(len(row) > 0, f"region {r}", "one choice or more", "none")
            for k, c in enumerate(row):
                finite, where = 0 <= c.noise < math.inf, f"region {r}, choice {k}"
                _expect(_is_time(c.time), where, "whole nanoseconds >= 0", repr(c.time))
                _expect(finite, where, "a finite noise >= 0", c.noise)
        for e, edge in enumerate(self.edges):
            a, b, count = edge.a, edge.b, len(self.regions)
            apart = 0 <= a < count and 0 <= b < count and a != b
            _expect(apart, f"edge {e}", f"two different regions below {count}", (a, b))
            shape = [len(self.regions[b])] * len(self.regions[a])
            got = [len(row) for row in edge.times]
            _expect(got == shape, f"edge {e}", f"rows of {shape} times, as {a} and {b} have", got)
            wrong = [repr(time) for row in edge.times for time in row if not _is_time(time)]
            _expect(not wrong, f"edge {e}", "whole nanoseconds >= 0", ", ".join(wrong))
        longest = sum(max(c.time for c in row) for row in self.regions)
        longest += sum(max(map(max, edge.times)) for edge in self.edges)
        _expect(longest <= LONGEST, "times", f"at most {LONGEST} ns in all", longest)

    def point(self, picks: Sequence[int]) -> Point:
        """An assignment with its time and its noise: the exact sum, rounded once."""
        chosen = [row[k] for row, k in zip(self.regions, picks, strict=True)]
        between = sum(edge.times[picks[edge.a]][picks[edge.b]] for edge in self.edges)
        time = sum(choice.time for choice in chosen) + between
        return Point(tuple(picks), time, math.fsum(choice.noise for choice in chosen))


def _is_time(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _expect(right: bool, where: str, expected: str, got: object) -> None:
    if not right:
        raise ValueError(f"{where}: expected {expected}, got {got}")


def fastest(problem: Problem, noise: float = math.inf) -> Point | None:
    """The least time within a noise, exactly; of equal times the least noise, to TOLERANCE.

    None: no assignment is within it. The same problem and limit give the same answer.
    """
    found = _search(problem, _Query(True, noise=noise))
    if found is None:
        return None
    return _search(problem, _Query(False, time=found.time, noise=found.noise)) or found


def most_exact(problem: Problem, time: int | None = None) -> Point | None:
    """The least noise within a time, to TOLERANCE; of equal noises the least time, exactly.

    None: no assignment is within it. The same problem and limit give the same answer.
    """
    found = _search(problem, _Query(False, time=math.inf if time is None else time))
    if found is None:
        return None
    return _search(problem, _Query(True, time=found.time, noise=found.noise)) or found


def front(
    problem: Problem, limits: Sequence[float], known: Sequence[Solved] = ()
) -> Iterator[Solved]:
    """The fastest point within each limit, in their order, each solved when it is asked for.

    known: of an earlier run of the same problem, taken where it is the answer, as are this run's.
    ValueError: a known point that adds up to something else here.
    """
    solved = list(known)
    for past in solved:
        if past.point is not None and problem.point(past.point.picks) != past.point:
            raise ValueError(f"known point at noise {past.limit}: it is one of another problem")
    for limit in limits:
        same = next((s for s in solved if s.answers(limit)), None)
        solved.append(Solved(limit, same.point if same else fastest(problem, limit)))
        yield solved[-1]


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other is as good as in both and better in one, by time; of equals the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.time, p.noise)):
        if not best or point.noise < best[-1].noise:
            best.append(point)
    return best


@dataclass(frozen=True)
class _Query:
    """The least time, or else the least noise, of what is within both limits."""

    least_time: bool
    time: float = math.inf
    noise: float = math.inf

    def admits(self, point: Point) -> bool:
        return point.time <= self.time and point.noise <= self.noise


def _search(problem: Problem, query: _Query) -> Point | None:
    """The best point within a query's limits; None where there is none."""
    if not problem.regions:
        return next(filter(query.admits, [problem.point(())]), None)
    best: Point | None = None
    cuts: list[Cut] = []
    tables = _tables(problem)
    largest = max(c.noise for row in problem.regions for c in row)
    while (kept := _within(problem, query.noise)) is not None:
        model = _Model.of(problem, _undominated(problem, kept, tables), tables)
        found = model.solve(query, cuts)
        if found is None:
            return best
        picks, bound = found
        point = problem.point(picks)
        if not query.admits(point):
            cuts.append(_cut(problem, point, query.noise))
            continue
        best = point
        # A bound is rounded by far less than half a nanosecond.
        value, step = (point.time, 0.5) if query.least_time else (point.noise, TOLERANCE * largest)
        if bound >= value - step:
            return best
        better = {"time": value - 1} if query.least_time else {"noise": value - step}
        query = replace(query, **better)
    return best


def _least(problem: Problem) -> list[float]:
    return [min(choice.noise for choice in row) for row in problem.regions]


def _within(problem: Problem, limit: float) -> list[list[int]] | None:
    """The choices of each region that are within a noise where all others are of the least.

    Sums are rounded once, so they grow with their terms: the others are in no answer.
    """
    least = _least(problem)
    if not math.fsum(least) <= limit:
        return None
    if limit == math.inf:
        return [list(range(len(row))) for row in problem.regions]
    return [
        [k for k, c in enumerate(row) if math.fsum([*least[:r], c.noise, *least[r + 1 :]]) <= limit]
        for r, row in enumerate(problem.regions)
    ]


def _tables(problem: Problem) -> Tables:
    """One table of times for each pair of regions: edges add up."""
    import numpy as np

    found: Tables = {}
    for edge in problem.edges:
        pair = edge.a, edge.b
        found[pair] = found.get(pair, 0) + np.array(edge.times, np.int64)
    return found


def _undominated(problem: Problem, kept: list[list[int]], tables: Tables) -> list[list[int]]:
    """Without choices that another replaces at no more time and noise, whatever the neighbours take
    (dead-end elimination, Goldstein 1994). Of equal ones the first stays.
    """
    import numpy as np

    sides: list[list[tuple[int, Whole]]] = [[] for _ in kept]
    for (a, b), table in tables.items():
        sides[a].append((b, table))
        sides[b].append((a, table.T))
    kept = list(kept)
    for r, row in enumerate(kept):
        choices = [problem.regions[r][k] for k in row]
        times, noise = np.array([c.time for c in choices]), np.array([c.noise for c in choices])
        slower = times[:, None] - times  # [i, j]: by how much i can be, at most, than j
        for other, table in sides[r]:
            part = table[np.ix_(row, kept[other])]
            slower = slower + (part[:, None] - part).max(2)
        replaces = (slower <= 0) & (noise[:, None] <= noise)
        out = (replaces & (~replaces.T | np.triu(np.ones_like(replaces), 1))).any(0)
        kept[r] = [k for k, gone in zip(row, out, strict=True) if not gone]
    return kept


def _cut(problem: Problem, point: Point, limit: float) -> Cut:
    """What cuts off a point that breaks a limit, and with it others that break it too.

    Of a point that is too noisy the largest rises above the least suffice for that, and so do as
    many that are each as large as theirs, or as the largest: an extended cover.
    """
    if point.noise <= limit:
        return frozenset(enumerate(point.picks)), len(point.picks) - 1
    noise = _least(problem)
    # Fractions: equal differences of doubles may be rounded to different ones.
    rises = [
        [Fraction(choice.noise) - Fraction(least) for choice in row]
        for row, least in zip(problem.regions, noise, strict=True)
    ]
    cover: dict[int, Fraction] = {}
    for r in sorted(range(len(rises)), key=lambda r: rises[r][point.picks[r]], reverse=True):
        noise[r], cover[r] = problem.regions[r][point.picks[r]].noise, rises[r][point.picks[r]]
        if math.fsum(noise) > limit:
            break
    most = max(cover.values())
    similar = ((r, k) for r, row in enumerate(rises) for k, rise in enumerate(row)
               if rise >= cover.get(r, most))  # fmt: skip
    return frozenset(similar), len(cover) - 1


@dataclass(frozen=True)
class _Model:
    """The columns of the program, choices and then meetings, and what they add to the least."""

    columns: tuple[tuple[int, int], ...]  # (region, choice)
    times: NDArray[np.float64]
    least_time: int
    noise: NDArray[np.float64]
    least_noise: float
    equations: Any  # scipy.optimize.LinearConstraint

    @staticmethod
    def of(problem: Problem, kept: list[list[int]], tables: Tables) -> _Model:
        """kept: the choices to take from, of each region."""
        import numpy as np
        from scipy.optimize import LinearConstraint
        from scipy.sparse import csr_array

        columns = [(r, k) for r, row in enumerate(kept) for k in row]
        starts = np.cumsum([0, *map(len, kept)])
        times = [np.array([problem.regions[r][k].time for k in row]) for r, row in enumerate(kept)]
        meetings: list[Whole] = []
        # Where the equations have numbers: one choice a region, then two sides of each meeting.
        rows, at = [np.array([r for r, _ in columns])], [np.arange(len(columns))]
        height, width = len(kept), len(columns)
        for (a, b), table in tables.items():
            part = table[np.ix_(kept[a], kept[b])]
            # What does not depend on the other end is a choice's own time.
            times[a] = times[a] + part.min(1)
            part = part - part.min(1, keepdims=True)
            times[b] = times[b] + part.min(0)
            part = part - part.min(0)
            if not part.any():
                continue
            # Choices that meet the other end alike meet it as one.
            part, first = np.unique(part, axis=0, return_inverse=True)
            part, second = np.unique(part, axis=1, return_inverse=True)
            i, j = np.indices(part.shape).reshape(2, -1) + height
            met, half = width + np.arange(part.size), len(part)
            rows += [i, half + j, height + first.ravel(), height + half + second.ravel()]
            at += [met, met, starts[a] + np.arange(first.size), starts[b] + np.arange(second.size)]
            meetings.append(part.ravel())
            height, width = height + sum(part.shape), width + part.size
        row, column = np.concatenate(rows), np.concatenate(at)
        signs = np.where((row >= len(kept)) & (column < len(columns)), -1.0, 1.0)
        matrix = csr_array((signs, (row, column)), shape=(height, width))
        sums = np.arange(height) < len(kept)
        noise = [np.array([problem.regions[r][k].noise for k in row]) for r, row in enumerate(kept)]
        return _Model(
            tuple(columns),
            np.concatenate([*(row - row.min() for row in times), *meetings]).astype(float),
            sum(int(row.min()) for row in times),
            np.concatenate([*(row - row.min() for row in noise), np.zeros(width - len(columns))]),
            math.fsum(_least(problem)),
            LinearConstraint(matrix, sums, sums),
        )

    def solve(self, query: _Query, cuts: Sequence[Cut]) -> tuple[tuple[int, ...], float] | None:
        """Picks, and what no goal is below, to HiGHS's tolerances; None: none are within limits."""
        import numpy as np
        from scipy.optimize import LinearConstraint, milp

        left = query.time - self.least_time
        if left < 0:
            return None
        goal = self.times if query.least_time else self.noise
        least = self.least_time if query.least_time else self.least_noise
        largest = max(goal.max(), RANGE if query.least_time else 0.0) or 1.0
        rows = [self.equations]
        # Half a nanosecond and what rounding may be: what is within the limits stays so.
        noise = max(query.noise - self.least_noise, 0.0) + ROUNDING * query.noise
        for row, room in ((self.times, left + 0.5), (self.noise, noise)):
            if 0 < room < math.inf:
                # What is beyond the room alone is so by any number, and a small one is safer.
                rows.append(LinearConstraint(np.minimum(row / room, 2.0) * RANGE, 0, RANGE))
        for choices, most in cuts:
            row = np.array([column in choices for column in self.columns], float)
            rows.append(LinearConstraint(np.pad(row, (0, len(goal) - len(row))), 0, most))
        bounds, whole = (0, self.times <= left), np.ones(len(goal))
        with _quiet():
            result = milp(goal / largest * RANGE, integrality=whole, bounds=bounds,
                          constraints=rows, options=OPTIONS)  # fmt: skip
        if result.status == INFEASIBLE:
            return None
        if result.status != OPTIMAL:
            raise RuntimeError(f"HiGHS did not solve a program: {result.message}")
        chosen = np.flatnonzero(result.x[: len(self.columns)] > 0.5)
        picks = tuple(self.columns[c][1] for c in chosen)
        return picks, least + result.mip_dual_bound / RANGE * largest


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints a line of debugging now and then, to C's standard output, past sys.stdout."""
    import ctypes

    sys.stdout.flush()
    library, shown = ctypes.CDLL(None), os.dup(1)
    library.fflush(None)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(shown, 1)
        os.close(shown)
