"""Commands on graphs: inspect, opt."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from qcompiler.cli.build import DATA, chosen, needs_data
from qcompiler.cli.exits import Refused
from qcompiler.cli.progress import progress
from qcompiler.cli.sources import data_of, require_writable

if TYPE_CHECKING:
    from qcompiler.pipeline import Pass
    from qcompiler.recipe import Recipe
    from qcompiler.runtime.bundle import Bundle

FILE = click.Path(exists=True, dir_okay=False, readable=False)  # reading it says why it cannot


@click.command()
@click.argument("path", type=FILE, metavar="m.qcm|g.qir")
def inspect(path: str) -> None:
    """Print what is known of an artifact, and the text of its graph. Needs no PyTorch."""
    if path.endswith(".qir"):
        from qcompiler.text import read_text

        click.echo(read_text(Path(path)), nl=False)
        return
    from qcompiler.runtime.bundle import GRAPH, read

    bundle = read(path, to_run=False)
    for line in facts(bundle):
        click.echo(f"// {line}")
    click.echo(bundle.text(GRAPH), nl=False)


def facts(bundle: Bundle) -> Iterator[str]:
    """The header of an artifact's text, line by line."""
    m, entry = bundle.manifest, bundle.manifest.main
    yield f"target   {m.target}, needs {' '.join(m.features) or 'nothing'}"
    yield f"recipe   {m.recipe}"
    for s in entry.inputs:
        yield f"input    {s.name}: {s!r}"
    for name, (low, high) in entry.symbols.items():
        yield f"         {name} in {low}..{'' if high is None else high}"
    for s in entry.outputs:
        yield f"output   {s.name}: {s!r}"
    for s in entry.state:
        yield f"state    {s.name}: {s!r}"
    for name, size in bundle.sizes.items():
        yield f"size     {name}: {size:,} bytes"
    for name, digest in m.hashes.items():
        yield f"hash     {name}: {digest or 'unknown'}"
    yield f"made by  {', '.join(f'{k} {v}' for k, v in m.versions.items() if v)}"


@click.command()
@click.argument("path", type=FILE, metavar="g.qir")
@click.option(
    "-p", "--passes", required=True, help='As in "simplify,fold"; see the numbered dumps.'
)
@click.option("--target", metavar="T", help="Default: the graph's own, else x86-64-v3.")
@click.option("--recipe", metavar="R", help="Default: the graph's own, else int8.")
@DATA
@click.option("-o", "--output", metavar="FILE", help="Default: the text goes to stdout.")
def opt(
    path: str, passes: str, target: str | None, recipe: str | None, calibration: str | None,
    output: str | None,
) -> None:  # fmt: skip
    """Run passes over a graph's text, as the pipeline does.

    The graph's constants are read from the folder beside it that it was written with.
    """
    from qcompiler import text
    from qcompiler.api import context
    from qcompiler.config import from_env
    from qcompiler.observers import observers_of
    from qcompiler.passes import by_name
    from qcompiler.pipeline import Pipeline, PipelineError

    if path.endswith(".qcm"):
        raise Refused(f"{path} is a program, opt takes the text of a graph; see qcompiler inspect")
    require_writable(output)
    steps = tuple(parsed_passes(passes))
    graph = text.load(Path(path))
    machine, wanted = chosen(
        target or graph.target or "x86-64-v3", recipe or graph.recipe or "int8"
    )
    wanted = _meant(wanted, steps)
    if by_name("calibrate") in steps or wanted.needs_data_again:
        needs_data(wanted, calibration)
    with progress(sys.stderr if output is None else sys.stdout) as show:
        ctx = context(graph, data_of(calibration), machine, wanted, show)
        try:
            result = Pipeline(steps)(graph, ctx, observers_of(from_env()))
        except PipelineError as e:
            if e.wanted is None:
                raise
            raise Refused(f"{e}; {_way_there(e.wanted)}") from e
    if output is None:
        click.echo(str(result), nl=False)
    else:
        text.save(result, Path(output))


def _meant(recipe: Recipe, steps: Sequence[Pass]) -> Recipe:
    """The recipe with the methods that are among the passes, which read what data it asks for."""
    from qcompiler.recipe import Rounding, Scaling

    for field, kind in (("rounding", Rounding), ("scaling", Scaling)):
        for step in steps:
            if step.name in {member.value for member in kind}:
                recipe = replace(recipe, **{field: step.name})  # type: ignore[arg-type]
    return recipe


def _way_there(wanted: Pass) -> str:
    """How to get a graph of the level that a pass needs."""
    from qcompiler.passes import ALL

    givers = [f"{p.name} gives {p.gives.name}" for p in ALL if p.gives in wanted.needs and p.gives]
    if givers:
        return f"{', '.join(givers)}: run it before"
    return "take the text of an earlier stage, as QC_DUMP=dir writes them"


def parsed_passes(text: str) -> Iterator[Pass]:
    """`name{option=value,...},name` as passes. Raises click.BadParameter."""
    from qcompiler import passes

    for item in _split(text):
        name, brace, options = item.strip().partition("{")
        try:
            found = passes.by_name(name.strip())
        except ValueError as e:
            raise _wrong(str(e)) from None
        if brace and not options.endswith("}"):
            raise _wrong(f"{item}: expected name{{option=value,...}}")
        yield _with_options(found, options[:-1]) if brace else found


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    items, depth, start = [], 0, 0
    for k, c in enumerate(text):
        depth += (c in "{([") - (c in "})]")
        if c == "," and depth == 0:
            items.append(text[start:k])
            start = k + 1
    return [*items, text[start:]]


def _with_options(found: Pass, text: str) -> Pass:
    """The pass with its options set; values are literals, enums by their value."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        given = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        if call.args or None in given:
            raise ValueError("expected option=value")
    except (SyntaxError, ValueError) as e:
        raise _wrong(f"{found.name}{{{text}}}: {e}") from None
    known = [f.name for f in fields(found)]
    unknown = [str(k) for k in given if k not in known]
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise _wrong(f"pass {found.name} has no option {unknown[0]!r}; {has}")
    hints = get_type_hints(type(found))
    try:
        return replace(found, **{str(k): _typed(v, hints[str(k)]) for k, v in given.items()})
    except (ValueError, TypeError) as e:
        raise _wrong(f"{found.name}{{{text}}}: {e}") from None


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise TypeError(f"expected {hint.__name__}, got {value!r}")
    return value


def _wrong(text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint="'--passes'")
