"""Assign codes: which layers are faster in float32, how many codes the others read, and how many
products of them 16 bits add up."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from qcompiler.context import Context
from qcompiler.graph import Graph, Node
from qcompiler.ops import Const, Conv2d, Linear, Matmul
from qcompiler.recipe import recipe_of
from qcompiler.sensitivity import NONE, sensitivities
from qcompiler.solver import Choice, Edge, Point, Problem, fastest, most_exact
from qcompiler.tradeoff import FrontPoint
from qcompiler.types import DType
from qcompiler.whole import program_name

from .prices import Offer, Prices, made, prices_of
from .read_codes import Reads
from .simulated import Simulation
from .units import Option, Unit, joined, units_of

LADDER = (
    math.inf, 12.0, 9.0, 6.0, 4.5, 3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.0, -0.5, -1.0, -1.5, -2.0,
    -3.0, -4.0, -5.0, -6.0, -8.0, -10.0, -12.0, -15.0, -20.0, -25.0, -30.0, -40.0,
)  # fmt: skip
"""Decibels by which the estimate is limited, against all codes with the safest sums: the best
choices within each are simulated, from the fastest on, until one holds."""
AHEAD = 2.0
"""Decibels: so much less noise than is estimated is hoped for."""
POOR = 1e-3
"""Noise of all codes, 30 dB below the signal: where they make less they do fit."""
UNFIT = 10.0
"""Times the noise of codes of weights: where all codes make more, they do not fit activations."""
CLOSE = 0.1
"""Decibels that are not told apart: chance makes more between choices alike."""
NANOSECONDS = 1000.0
"""Of a microsecond. The solver adds whole ones, so that sums of them are exact."""


class TimeError(ValueError):
    """The recipe allows less time than the fastest choices take."""


@dataclass(frozen=True)
class Choices:
    """The units of a graph, the option of each, and why layers are to compute in float32."""

    units: Sequence[Unit]
    options: Sequence[Option]
    floats: Mapping[Node, str] = field(default_factory=dict)

    def applied(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with codes and products as chosen; the recipe's default needs no note."""
        if not ctx.recipe.sums_loss:
            return graph
        pairs = zip(self.units, self.options, strict=True)
        return graph.noted(joined([note for unit, option in pairs for note in unit.notes(option)]))

    def of(self, graph: Graph, ctx: Context) -> Choices:
        """The same choices in a graph whose layers in float32 were given up: where a unit has
        changed with them, the rule's."""
        known = {_names(u): o for u, o in zip(self.units, self.options, strict=True)}
        units = units_of(graph, ctx)
        return Choices(units, [known.get(_names(unit), unit.rule) for unit in units])


def _names(unit: Unit) -> tuple[str, ...]:
    return (*(n.name for n in unit.members), "", *(layer.node.name for layer in unit.layers))


def choices_of(graph: Graph, ctx: Context, solve: bool) -> Choices:
    """What is chosen for a graph, PLANNED.

    Each layer may lose the recipe's `sums_loss`: that is the rule. With `solve`, a layer for which
    float32 is faster computes in it; where all sums of layers were measured and the recipe has
    decibels, what makes least noise at the outputs is chosen of all that takes no longer; a recipe
    with `max_drop` gets the fastest of what makes no more noise than that, one with `max_time` what
    makes least noise within it.
    """
    units = units_of(graph, ctx) if ctx.target is not None and not ctx.recipe.group else []
    rule = Choices(units, [unit.rule for unit in units])
    if not solve or not units:
        return rule
    search = Search.of(graph, units, ctx)
    if all(len(row) == 1 for row in search.offers):
        return rule
    chosen = search.options(search.wanted())
    return Choices(units, chosen, dict(_reasons(search.prices, chosen)))


@dataclass(frozen=True)
class Search:
    """The offers of each unit and what they add up to.

    Noise, where it matters, is estimated from gradients while it is searched, of the sample that
    calibration kept, and simulated for what is found: errors that are not small do not just add up.
    """

    graph: Graph
    ctx: Context
    prices: Sequence[Prices]
    offers: Sequence[Sequence[Offer]]
    problem: Problem

    @staticmethod
    def of(graph: Graph, units: Sequence[Unit], ctx: Context) -> Search:
        sample = ctx.sample if ctx.recipe.sums_loss else None
        gains = NONE
        if sample is not None:
            reads = Reads.of(graph)
            gains = reads.sensitivity(sensitivities(reads.graph, sample))
        prices = prices_of(graph, units, gains, ctx)
        deep = sample is not None
        limited = ctx.recipe.max_drop is not None or ctx.recipe.max_time is not None
        offers = [p.all() if deep and (p.measured or limited) else p.plain() for p in prices]
        problem = problem_of(graph, units, offers, ctx)
        return Search(graph, ctx, prices, offers, problem)

    @cached_property
    def simulation(self) -> Simulation | None:
        """None where noise does not matter."""
        return Simulation.of(self.graph, self.ctx) if self.ctx.recipe.sums_loss else None

    @property
    def units(self) -> list[Unit]:
        return [p.unit for p in self.prices]

    def options(self, picks: Sequence[int]) -> list[Option]:
        return [row[k].option for row, k in zip(self.offers, picks, strict=True)]

    def simulated(self, picks: tuple[int, ...]) -> float | None:
        """The noise at the outputs; None where it does not matter."""
        if self.simulation is not None and picks not in self._noise:
            self._noise[picks] = self.simulation.noise(self.units, self.options(picks))
        return self._noise.get(picks)

    def wanted(self) -> tuple[int, ...]:
        """What the recipe asks for. Raises TimeError where nothing is fast enough."""
        drop, time = self.ctx.recipe.max_drop, self.ctx.recipe.max_time
        if time is not None:
            return self.within(time)
        return self.as_fast() if drop is None else self.as_exact(drop)

    def within(self, milliseconds: float) -> tuple[int, ...]:
        """What is estimated to make least noise and takes no longer."""
        for p in self.prices:
            if p.unit.layers and not p.times:
                name = p.unit.layers[0].node.name
                raise TimeError(f"max_time: nothing is known of how long %{name} takes here")
        found = most_exact(self.problem, _whole(milliseconds * 1e3 - self.rest))
        if found is not None:
            return found.picks
        best = fastest(self.problem)
        assert best is not None
        raise TimeError(
            f"max_time: expected at least {self.milliseconds(best.picks):.3g} ms, of the fastest "
            f"choices there are, got {milliseconds:.3g}; allow more, or measure by `qcompiler tune`"
        )

    @cached_property
    def rest(self) -> float:
        """Microseconds of the program that are not of layers and conversions, as recipe int8 has
        them; 0 where its program, or a layer, was not measured."""
        assert self.ctx.target is not None
        whole = self.ctx.target.least(program_name(self.graph, recipe_of("int8")))
        if whole is None or not all(p.measured for p in self.prices):
            return 0.0
        offers = [[p.offer(p.unit.safe), *p.in_float()] for p in self.prices]
        found = fastest(problem_of(self.graph, self.units, offers, self.ctx))
        assert found is not None
        return max(0.0, whole - found.time / NANOSECONDS)

    def milliseconds(self, picks: Sequence[int]) -> float:
        return self.problem.point(picks).time / 1e6 + self.rest / 1e3

    def as_fast(self) -> tuple[int, ...]:
        """The fastest of the rule and float32; of all that takes no longer, that of least noise."""
        plain = [p.plain() for p in self.prices]
        best = fastest(problem_of(self.graph, self.units, plain, self.ctx))
        assert best is not None
        if not any(offer.noise for row in self.offers for offer in row):
            return best.picks  # they are offered first
        found = most_exact(self.problem, best.time)
        assert found is not None
        return found.picks

    def as_exact(self, drop: float) -> tuple[int, ...]:
        """The fastest of what makes no more noise than all codes with the safest sums do, and so
        many decibels, as it is simulated."""
        safe = [p.unit.safe for p in self.prices]
        if self.simulation is None:
            return self.as_fast()
        if not self.safest:  # no output tells: class numbers, say
            return self._picks(safe)
        allowed = self.allowed(drop) * 10 ** (CLOSE / 10)
        over = 10 * math.log10(max(allowed / self.safest, sys.float_info.min))
        highest = over + AHEAD if over + AHEAD <= max(LADDER[1:]) else math.inf
        for rung in LADDER:
            if rung > highest:
                continue
            point = self._within(rung)
            if point is None:
                break
            noise = self.simulated(point.picks)
            if noise is not None and noise <= allowed:
                return point.picks
        if over < 0:  # nothing may be within it
            best = most_exact(self.problem)
            return self._picks(safe) if best is None else best.picks
        return self._picks(safe)

    def _within(self, rung: float) -> Point | None:
        """The fastest choices whose noise is estimated to be within that rung."""
        if rung not in self._fastest:
            estimated = sum(p.offer(p.unit.safe).noise for p in self.prices)
            limit = math.inf if rung == math.inf else estimated * 10 ** (rung / 10)
            self._fastest[rung] = fastest(self.problem, limit)
        return self._fastest[rung]

    @cached_property
    def _fastest(self) -> dict[float, Point | None]:
        """What was found within each rung before."""
        return {}

    @cached_property
    def _noise(self) -> dict[tuple[int, ...], float]:
        """What was simulated before."""
        return {}

    @cached_property
    def safest(self) -> float:
        """The noise of all codes with the safest sums, simulated."""
        assert self.simulation is not None
        return self.simulation.noise(self.units, [p.unit.safe for p in self.prices])

    def allowed(self, drop: float) -> float:
        """The noise that may be made. Where codes of activations cost too much, it is measured by
        what those of weights do alone, if the recipe says so."""
        within = self.safest * 10 ** (drop / 10)
        over = self.ctx.recipe.over_weights
        if over is None or not POOR < self.safest < math.inf:
            return within
        assert self.simulation is not None
        safe = [p.unit.safe for p in self.prices]
        weights = self.simulation.noise(self.units, safe, activations=False)
        unfit = 0 < UNFIT * weights < self.safest  # weights that codes hold exactly tell nothing
        return weights * 10 ** (over / 10) if unfit else within

    def point(self, drop: float) -> FrontPoint:
        """What the fastest choices cost that lose so many decibels more than all codes with the
        safest sums."""
        picks = self.as_exact(drop)
        noise = self.simulated(picks)
        sqnr = -10 * math.log10(noise) if noise else math.inf
        pairs = zip(self.units, self.options(picks), strict=True)
        floats = sum(len(unit.layers) for unit, option in pairs if option.floats)
        return FrontPoint(drop, self.milliseconds(picks), sqnr, floats)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the choices depend on."""
        offers = [[(o.time, o.noise) for o in row] for row in self.offers]
        known = (self.graph, self.ctx.recipe.to_toml(), offers, self.problem.edges, self.rest)
        return hashlib.sha256("\n".join(map(str, known)).encode()).hexdigest()

    def _picks(self, options: Sequence[Option]) -> tuple[int, ...]:
        """Where these are among the offers; the first of each unit that has no choice."""
        offered = [[offer.option for offer in row] for row in self.offers]
        return tuple(
            row.index(option) if option in row else 0
            for row, option in zip(offered, options, strict=True)
        )


def problem_of(
    graph: Graph, units: Sequence[Unit], offers: Sequence[Sequence[Offer]], ctx: Context
) -> Problem:
    """Times and noise of the offers, and of conversions where neighbours compute differently."""
    once, edges = conversions(graph, units, offers, ctx)
    regions = [
        tuple(Choice(_whole(o.time + extra[o.option.floats]), o.noise) for o in row)
        for row, extra in zip(offers, once, strict=True)
    ]
    return Problem(tuple(regions), tuple(edges))


def conversions(
    graph: Graph, units: Sequence[Unit], offers: Sequence[Sequence[Offer]], ctx: Context
) -> tuple[list[tuple[float, float]], list[Edge]]:
    """(microseconds of each unit in integers and in float32, from what is never a choice; times
    between units). What several nodes make, each has its part in."""
    assert ctx.target is not None
    owner = {layer.node: k for k, unit in enumerate(units) for layer in unit.layers}
    once, edges = [], []
    for k, unit in enumerate(units):
        total = [0.0, 0.0]
        for node in made(unit):
            makers = list(dict.fromkeys(_makers(node, owner)))
            each = 1 / max(len(makers), 1)
            to_codes, to_float = (
                each * ctx.target.quantizing(node), each * ctx.target.dequantizing(node)
            )  # fmt: skip
            for maker in makers:
                if maker is IN_FLOAT:
                    total[0] += to_codes
                elif maker is IN_CODES:
                    total[1] += to_float
                elif maker != k:
                    table = _table(offers[maker], offers[k], _whole(to_codes), _whole(to_float))
                    edges.append(Edge(maker, k, table))
        once.append((total[0], total[1]))
    return once, [edge for edge in edges if any(map(any, edge.times))]


IN_FLOAT, IN_CODES = -1, -2
"""What is computed in float32, or in integers, whatever is chosen."""


def _makers(node: Node, owner: Mapping[Node, int]) -> Iterator[int]:
    """The units whose layers a tensor is computed from, through what has no weights."""
    seen, stack = set(), [node]
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node.op, Const):
            continue
        seen.add(node)
        if node in owner:
            yield owner[node]
        elif node.note.precision is not DType.INT8 or not node.inputs:
            yield IN_FLOAT
        elif isinstance(node.op, Conv2d | Linear | Matmul):
            yield IN_CODES
        else:
            stack += reversed(node.inputs)


def _table(
    first: Sequence[Offer], second: Sequence[Offer], to_codes: int, to_float: int
) -> tuple[tuple[int, ...], ...]:
    times = {(False, False): 0, (True, True): 0, (True, False): to_codes, (False, True): to_float}
    return tuple(
        tuple(times[a.option.floats, b.option.floats] for b in second) for a in first
    )  # fmt: skip


def _whole(us: float) -> int:
    return round(us * NANOSECONDS)


def _reasons(prices: Sequence[Prices], chosen: Sequence[Option]) -> Iterator[tuple[Node, str]]:
    """Why layers compute in float32, with the times of both."""
    for p, option in zip(prices, chosen, strict=True):
        if not option.floats:
            continue
        for layer, times, sums in zip(p.unit.layers, p.times, p.unit.rule.sums, strict=True):
            how = "measured" if p.measured else "estimated"
            spent = f"{times[None]:.3g} us in float32, {times[sums]:.3g} in integers"
            why = "faster in float32"
            if times[None] >= times[sums]:
                noisy = p.offer(p.unit.rule).noise > 0
                cost = "more accuracy" if noisy else "more time to make"
                why = f"its codes cost {cost} than they save"
            yield layer.node, f"{why} ({how}: {spent})"
