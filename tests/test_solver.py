"""The solver of choices: against every assignment of small problems, and the rules it promises."""

import math
import os
from collections.abc import Iterator
from itertools import product

import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import solver
from qcompiler.solver import (
    TOLERANCE,
    Choice,
    Edge,
    Point,
    Problem,
    Solved,
    fastest,
    front,
    most_exact,
    pareto,
)

EXAMPLES = 25  # some queries each, of 10 to 50 ms
NOISES = st.one_of(
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1e-12, 1e3]),
    st.floats(-12, 3).map(lambda exponent: 10.0**exponent),
)
TIMES = st.one_of(st.integers(0, 4), st.integers(0, 10**6))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    choice = st.builds(Choice, TIMES, NOISES)
    regions = draw(st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=5))
    count = len(regions)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    edges = []
    for a, b in draw(st.lists(st.sampled_from(pairs), max_size=6)) if pairs else []:
        rows = st.tuples(*[TIMES] * len(regions[b]))
        edges.append(Edge(a, b, draw(st.tuples(*[rows] * len(regions[a])))))
    return Problem(tuple(map(tuple, regions)), tuple(edges))


def everything(problem: Problem) -> list[Point]:
    return [problem.point(picks) for picks in product(*(range(len(r)) for r in problem.regions))]


def tolerance(problem: Problem) -> float:
    return TOLERANCE * max(choice.noise for row in problem.regions for choice in row)


def check_fastest(problem: Problem, points: list[Point], limit: float) -> None:
    found = fastest(problem, limit)
    within = [p for p in points if p.noise <= limit]
    if not within:
        assert found is None
        return
    best = min(within, key=lambda p: (p.time, p.noise))
    assert found is not None and found == problem.point(found.picks)
    assert found.time == best.time and found.noise <= limit
    assert found.noise - best.noise <= tolerance(problem)


def check_most_exact(problem: Problem, points: list[Point], limit: int | None) -> None:
    found = most_exact(problem, limit)
    within = [p for p in points if limit is None or p.time <= limit]
    if not within:
        assert found is None
        return
    assert found is not None and found == problem.point(found.picks)
    assert found.noise - min(p.noise for p in within) <= tolerance(problem)
    assert found.time == min(p.time for p in within if p.noise <= found.noise)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_the_fastest_is_that_of_all_assignments(problem: Problem, data: st.DataObject) -> None:
    points = everything(problem)
    reached = data.draw(st.sampled_from(points)).noise
    for limit in (math.inf, reached, math.nextafter(reached, -1.0)):
        check_fastest(problem, points, limit)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_the_most_exact_is_that_of_all_assignments(problem: Problem, data: st.DataObject) -> None:
    points = everything(problem)
    reached = data.draw(st.sampled_from(points)).time
    for limit in (None, reached, reached - 1):
        check_most_exact(problem, points, limit)


# With its presolve HiGHS gives a slower point for the first.
WIDE = [
    ([[(0, 1e3), (8, 1e-6)], [(10, 1e-6)], [(0, 1e3), (10, 1e-12)], [(8, 1e3), (5, 1e-6)]],
     2000.000001000001),
    ([[(0, 0.9), (9, 0.0)], [(0, 0.9), (7, 1e-9)], [(0, 1e-6), (3, 0.0)]], 0.9 + 1e-6),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "limit"), WIDE)
def test_noises_of_many_scales(rows: list[list[tuple[int, float]]], limit: float) -> None:
    problem = Problem(tuple(tuple(Choice(*c) for c in row) for row in rows))
    for bound in (limit, math.nextafter(limit, 0.0)):
        check_fastest(problem, everything(problem), bound)


CONVERT = ((0, 9), (9, 0))


def chain() -> Problem:
    """Regions that are each faster in the second precision, but for the one in the middle; a pair
    of conversions around it costs more than it gains, and one at the start less."""
    row = (Choice(10, 0.0), Choice(6, 0.1))
    regions = ((Choice(0, 0.0),), row, row, (Choice(5, 0.0), Choice(8, 0.1)), row, row)
    edges = (Edge(0, 1, ((0, 3),)), *(Edge(k, k + 1, CONVERT) for k in range(1, 5)))
    return Problem(regions, edges)


def test_conversions_are_weighed_against_what_they_gain() -> None:
    problem = chain()
    greedy = problem.point((0, 1, 1, 0, 1, 1))
    found = fastest(problem)
    assert found is not None
    assert (found.picks, found.time) == ((0, 1, 1, 1, 1, 1), 35)
    assert found.time < greedy.time == 50
    assert most_exact(problem, 44) == problem.point((0, 1, 1, 1, 1, 1))
    assert most_exact(problem, 45) == problem.point((0,) * 6)


def test_ties_are_broken_by_the_other_sum_and_then_by_order() -> None:
    same = (Choice(5, 0.5), Choice(5, 0.25), Choice(7, 0.25), Choice(5, 0.25))
    problem = Problem((same, same), (Edge(0, 1, ((1,) * 4,) * 4),))
    assert fastest(problem) == most_exact(problem) == Point((1, 1), 11, 0.5)


def test_many_alike_just_beyond_a_limit_need_few_searches(calls: list[int]) -> None:
    """Each assignment that is too noisy by the last bit has thousands of the same noise."""
    problem = Problem(((Choice(10, 0.0), Choice(3, 0.1)),) * 16)
    limit = math.fsum([0.1] * 8)
    exact, below = fastest(problem, limit), fastest(problem, math.nextafter(limit, 0.0))
    assert exact is not None and below is not None
    assert (exact.time, below.time) == (104, 111)
    assert len(calls) <= 6


def test_what_is_out_of_reach_is_none() -> None:
    problem = Problem(((Choice(3, 0.1), Choice(1, 0.2)),) * 3, (Edge(0, 1, ((1, 1), (1, 1))),))
    assert fastest(problem, 0.29) is None
    assert most_exact(problem, 3) is None
    assert most_exact(problem, 4) == problem.point((1, 1, 1))
    assert fastest(Problem(()), 0.0) == Point((), 0, 0.0)
    assert fastest(Problem(()), -1.0) is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The columns of each program that HiGHS gets."""
    seen: list[int] = []
    real = scipy.optimize.milp

    def milp(c, **options):
        seen.append(len(c))
        return real(c, **options)

    monkeypatch.setattr(scipy.optimize, "milp", milp)
    yield seen


LIMITS = [-1.0, 0.0, 0.3, 0.2, 0.45, 0.5, 9.0]
STEPS = Problem(tuple((Choice(9, 0.0), Choice(8 - k, 0.125)) for k in range(5)))


def test_a_resumed_front_is_that_of_one_run_with_less_work(calls: list[int]) -> None:
    whole = list(front(STEPS, LIMITS))
    work = len(calls)
    assert [s.point and s.point.time for s in whole] == [None, 45, 36, 40, 33, 31, 30]
    calls.clear()
    assert list(front(STEPS, LIMITS, whole[3:])) == whole
    assert 0 < len(calls) < work
    calls.clear()
    assert list(front(STEPS, LIMITS, whole)) == whole
    assert calls == []


def test_a_front_is_solved_limit_by_limit(calls: list[int]) -> None:
    points = front(STEPS, LIMITS[1:])
    assert calls == []
    next(points)
    done = len(calls)
    list(points)
    assert 0 < done < len(calls)


def test_a_point_answers_for_lower_limits_down_to_its_noise() -> None:
    solved = Solved(1.0, Point((0,), 5, 0.25))
    assert [solved.answers(x) for x in (1.5, 1.0, 0.25, 0.2)] == [False, True, True, False]
    assert [Solved(1.0, None).answers(x) for x in (1.5, 0.1)] == [False, True]


def test_known_points_of_another_problem_are_refused() -> None:
    known = [Solved(1.0, Point((0,) * 6, 1, 0.0))]
    with pytest.raises(ValueError, match="another problem"):
        list(front(chain(), [1.0], known))


def test_pareto_keeps_what_no_other_dominates() -> None:
    points = [Point((k,), t, n) for k, (t, n) in enumerate([(5, 1.0), (3, 2.0), (5, 1.0), (4, 2.0),
              (3, 2.5), (9, 0.0)])]  # fmt: skip
    assert [p.picks[0] for p in pareto(points)] == [1, 0, 5]


def test_the_same_problem_has_the_same_answer() -> None:
    row = tuple(Choice(100 - k, 0.1 * k) for k in range(4))
    edges = tuple(Edge(k, (k + 1) % 6, ((0, 1, 1, 0),) * 4) for k in range(6))
    problem = Problem((row,) * 6, edges)
    assert len({fastest(problem, 0.7) for _ in range(3)}) == 1
    assert len({most_exact(problem, 593) for _ in range(3)}) == 1


ONE = (Choice(1, 0.0),)


@pytest.mark.parametrize(
    ("regions", "edges", "message"),
    [
        ((ONE, ()), (), "region 1: expected one choice or more"),
        ((ONE, (Choice(-1, 0.0),)), (), r"region 1, choice 0: expected whole .*, got -1"),
        (((Choice(1.5, 0.0),),), (), r"region 0, choice 0: expected whole .*, got 1.5"),  # type: ignore[arg-type]
        (((Choice(1, -0.5),),), (), r"region 0, choice 0: expected a finite noise >= 0, got -0.5"),
        (((Choice(1, math.nan),),), (), "got nan"),
        ((ONE,), (Edge(0, 0, ((1,),)),), r"edge 0: expected two different .* got \(0, 0\)"),
        ((ONE, ONE), (Edge(0, 2, ((1,),)),), r"edge 0: expected .* below 2, got \(0, 2\)"),
        ((ONE, ONE), (Edge(0, 1, ((1, 2),)),), r"edge 0: expected rows of \[1\] times.*got \[2\]"),
        ((ONE, ONE), (Edge(0, 1, ((-2,),)),), "edge 0: expected whole nanoseconds >= 0, got -2"),
        (((Choice(10**13, 0.0),),), (), "times: expected at most"),
    ],
)
def test_what_is_no_problem_is_refused(regions, edges, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(regions, edges)


def test_a_point_needs_a_pick_for_each_region() -> None:
    with pytest.raises(ValueError):
        chain().point((0, 0))


def test_what_highs_prints_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with solver._quiet():
        os.write(1, b"a line of debugging")
    print("shown")
    assert capfd.readouterr().out == "shown\n"
