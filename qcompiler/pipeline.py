"""Passes and pipelines: levels checked when built, graphs verified after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.op import OpError
from qcompiler.rewrite import Rule, named, rewrite
from qcompiler.verify import VerifyError, verify

Levels = tuple[Level, ...]
Run = Callable[[Graph, Context], Graph]


class PipelineError(ValueError):
    """Passes in an order that their levels do not allow, or a graph at a wrong level.

    wanted: the pass that needs another level.
    """

    def __init__(self, text: str, wanted: Pass | None = None) -> None:
        super().__init__(text)
        self.wanted = wanted


class PassError(RuntimeError):
    """A pass broke: it raised what passes do not, or gave back another function's graph."""


@dataclass(frozen=True)
class Pass:
    """A graph-to-graph function with a contract.

    needs: the levels it accepts. gives: the level of its result (None: unchanged). exact: its
    result computes the same values, which QC_CHECK verifies. required: later passes or kernels
    cannot do without it, or a recipe asks for it; optional: QC_BISECT may skip it, for it neither
    is nor gives a level.
    Subclasses are frozen dataclasses whose further fields are the pass's options.
    """

    def run(self, graph: Graph, ctx: Context) -> Graph:
        raise TypeError(f"{type(self).__name__} defines no run")

    @property
    def name(self) -> str:
        raise TypeError(f"{type(self).__name__} has no name")

    @property
    def needs(self) -> Levels:
        raise TypeError(f"{type(self).__name__} does not say which level it needs")

    @property
    def gives(self) -> Level | None:
        return None

    @property
    def exact(self) -> bool:
        return False

    @property
    def required(self) -> bool:
        return False

    @property
    def optional(self) -> bool:
        return self.gives is None and not self.required

    def __str__(self) -> str:
        """As written on the command line: `name{option=value,...}`."""
        set_ = [f for f in fields(self) if getattr(self, f.name) != f.default and f.repr]
        options = ",".join(f"{f.name}={getattr(self, f.name)!r}" for f in set_)
        return f"{self.name}{{{options}}}" if options else self.name


def declare(
    name: str, needs: Level | Sequence[Level], gives: Level | None = None, exact: bool = False,
    required: bool = False,
) -> Callable[[type[Pass]], type[Pass]]:  # fmt: skip
    """Class decorator that states a pass's contract."""
    levels = (needs,) if isinstance(needs, Level) else tuple(needs)
    contract = {
        "name": name, "needs": levels, "gives": gives, "exact": exact, "required": required,
    }  # fmt: skip

    def apply(cls: type[Pass]) -> type[Pass]:
        for key, value in contract.items():
            setattr(cls, key, value)
        return cls

    return apply


def graph_pass(
    name: str, needs: Level | Sequence[Level], gives: Level | None = None, exact: bool = False,
    required: bool = False,
) -> Callable[[Run], Pass]:  # fmt: skip
    """Make a pass from a function (graph, ctx) -> graph. Its docstring says what it does."""

    def wrap(run: Run) -> Pass:
        body = {"run": lambda self, graph, ctx: run(graph, ctx), "__doc__": run.__doc__}
        cls: type[Pass] = dataclass(frozen=True)(type(run.__name__, (Pass,), body))
        made: Pass = declare(name, needs, gives, exact, required)(cls)()
        return made

    return wrap


def rewrites(
    name: str, rules: Sequence[Rule], needs: Level | Sequence[Level] = Level.FLOAT,
    exact: bool = True, required: bool = False,
) -> Pass:  # fmt: skip
    """A pass that applies rules until none fires."""

    def run(graph: Graph, ctx: Context) -> Graph:
        return rewrite(graph, rules, ctx)

    run.__doc__ = "; ".join((r.__doc__ or r.__name__).splitlines()[0] for r in rules)
    return graph_pass(name, needs, None, exact, required)(run)


class Observer:
    """Sees a pipeline run: printing, dumping, timing and checking are all observers."""

    def before(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        """Called with the graph a pass is about to get."""

    def after(self, pass_: Pass, old: Graph, new: Graph, ctx: Context) -> None:
        """Called with the verified result."""

    def event(self, kind: str, *details: Any) -> None:
        """Called for each rule `applied` or `missed`."""

    def lowered(self, script: Callable[[], str]) -> None:
        """Called when kernels are written, with what gives their code as text."""

    def failed(self, pass_: Pass, graph: Graph, ctx: Context, error: Exception) -> None:
        """Called with the graph on which a pass failed."""

    def unbuilt(self, graph: Graph, ctx: Context, error: Exception) -> None:
        """Called with the INTEGER graph that could not be lowered, compiled or linked."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Raises PipelineError when built if their levels do not connect."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        at = set(Level)  # where the graph may be
        last: Pass | None = None
        for p in self.passes:
            if not at & set(p.needs):
                left = " or ".join(level.name for level in sorted(at))
                found = f"{last.name if last else ''} leaves {left}"
                raise PipelineError(f"{_wants(p)}, but {found}", p)
            at = at & set(p.needs) if p.gives is None else {p.gives}
            last = p

    @property
    def optional(self) -> int:
        """How many passes QC_BISECT counts."""
        return sum(p.optional for p in self.passes)

    def __call__(
        self, graph: Graph, ctx: Context | None = None, observers: Sequence[Observer] = ()
    ) -> Graph:
        stages = [graph, *self.stages(graph, ctx or Context(), observers)]
        return stages[-1]

    def stages(
        self, graph: Graph, ctx: Context, observers: Sequence[Observer] = (), bisect: int = -1
    ) -> Iterator[Graph]:
        """The graph after each pass. bisect: run only the first so many optional passes."""
        ctx = replace(ctx, listen=(*ctx.listen, *(o.event for o in observers)))
        done = 0
        for p in self.passes:
            if graph.level not in p.needs:
                raise PipelineError(f"{_wants(p)}, but the graph is at {graph.level.name}", p)
            done += p.optional
            if p.optional and 0 <= bisect < done:
                continue
            graph = _step(p, graph, ctx, observers)
            yield graph


def _wants(p: Pass) -> str:
    return f"{p.name} needs {' or '.join(level.name for level in p.needs)}"


def _step(p: Pass, graph: Graph, ctx: Context, observers: Sequence[Observer]) -> Graph:
    for o in observers:
        o.before(p, graph, ctx)
    try:
        new = _run(p, graph, ctx)
        _verified(p, graph, new)
        for o in observers:
            o.after(p, graph, new, ctx)
    except Exception as e:
        for o in observers:
            o.failed(p, graph, ctx, e)
        raise
    return new


def _run(p: Pass, graph: Graph, ctx: Context) -> Graph:
    try:
        new = p.run(graph, ctx)
        if isinstance(new, Graph):
            new = named(new)
    except OpError as e:
        raise PassError(f"pass {p.name}: {e}") from e
    except ValueError:
        raise  # what the passes themselves say of the user's model and data
    except Exception as e:
        raise PassError(f"pass {p.name} failed: {type(e).__name__}: {e}") from e
    if not isinstance(new, Graph):
        raise PassError(f"pass {p.name}: expected it to return a graph, got {type(new).__name__}")
    return new if p.gives is None else replace(new, level=p.gives)


def _signature(old: Graph, new: Graph) -> str | None:
    """How a pass changed what the graph takes and gives; None when it did not."""
    for what in ("parameters", "results", "state"):
        before, after = getattr(old, what), getattr(new, what)
        if len(before) != len(after):
            return f"expected {len(before)} {what}, as before it, got {len(after)}"
    for a, b in zip((*old.parameters, *old.results), (*new.parameters, *new.results), strict=True):
        if (a.tensor.shape, a.tensor.dtype) != (b.tensor.shape, b.tensor.dtype):
            return f"expected %{a.name} to stay {a.type!r}, got %{b.name} : {b.type!r}"
    return None


def _verified(p: Pass, old: Graph, new: Graph) -> None:
    try:
        verify(new)
    except VerifyError as e:
        raise VerifyError(f"after {p.name}: {e}") from e
    problem = _signature(old, new)
    if problem:
        raise VerifyError(f"after {p.name}: {problem}")
