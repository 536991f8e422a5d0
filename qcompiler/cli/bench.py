"""The bench command: times of our programs and of other runtimes, side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.build import DATA, chosen, given, timed
from qcompiler.cli.exits import usage
from qcompiler.cli.progress import Show, progress
from qcompiler.cli.sources import Model, allowed_threads, data_of, model_of, require_writable

if TYPE_CHECKING:
    from qcompiler.bench.session import Open
    from qcompiler.peers import Mode

ROUNDS, ROUNDS_OF_MANY = 30, 10
EPILOG = (
    "SOURCE is an artifact m.qcm, a .pt2 file, package.module:function, or a NAME: of a built-in "
    "work, which brings calibration data (resnet50, mobilenet_v2, bert_base, vit_b16, gpt2_small, "
    "gpt2_decode, gemm768, gemv), or of a model in qcompiler.zoo. Any other SOURCE is calibrated "
    "on its example inputs without --calibration: times are right, results are not."
)


@dataclass(frozen=True)
class Asked:
    """The options, checked."""

    source: str | None
    target: Any
    recipe: Any
    calibration: str | None
    rounds: int
    threads: int
    batch: int
    peers: tuple[str, ...]
    every: bool
    memory: bool
    seconds: bool
    per_op: bool
    as_json: bool


@click.command(epilog=EPILOG)
@click.argument("source", required=False)
@click.option("--all", "every", is_flag=True, help="Every built-in work.")
@click.option("--against", default="", metavar="PEERS",
              help="Of onnxruntime, openvino, torch, with commas between; adds all our recipes "
              "and the bars.")  # fmt: skip
@click.option("--target", default="native", show_default=True, metavar="T")
@click.option("--recipe", default="int8", show_default=True, metavar="R")
@DATA
@click.option("--rounds", type=click.IntRange(min=2),
              help=f"[default: {ROUNDS}, {ROUNDS_OF_MANY} with --against]")  # fmt: skip
@click.option("--threads", type=int, callback=allowed_threads, default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
              help="Of a built-in work; above 1, batch 1 is measured too.")  # fmt: skip
@click.option("--per-op", is_flag=True, help="Time each kernel of the program of --recipe.")
@click.option("--compile", "seconds", is_flag=True, help="Show the time quantize and build take.")
@click.option("--memory", is_flag=True, help="Memory of a process that runs ResNet-50 int8.")
@click.option("--database", metavar="FILE",
              help="Times to be used; those of our whole programs at one thread are kept there.")
@click.option("--like", metavar="T",
              help="Hide from every program the instructions that target T (x86-64-...) lacks.")
@click.option("--methods", is_flag=True,
              help="Instead: what rounding and scaling do to the accuracy of a pretrained model "
              "(efficientnet_lite0, minilm, lee50, smollm2) by --recipe, "
              "and quantizers of --against.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(target: str, recipe: str, against: str, rounds: int | None, like: str | None,
          database: str | None, methods: bool, **options: Any) -> None:  # fmt: skip
    """Measure the time of a call: median and quartiles, all programs in turns.

    Results are compared with PyTorch's in float32, as SQNR.
    """
    if like is not None:
        _in_disguise(like)
    if not (options["source"] or options["every"] or options["memory"]):
        raise click.UsageError("name a SOURCE, or give --all or --memory")
    if options["source"] and options["every"]:
        raise click.UsageError("--all measures every built-in work; leave SOURCE out")
    machine, wanted = chosen(target, recipe)
    peers = peers_of(against)
    if methods:
        _bench_methods(options["source"], wanted, machine.name, peers, options["as_json"])
        return
    require_writable(database)
    if database is not None and Path(database).exists():
        machine = timed(machine, database)
    many = bool(peers) or options["every"]
    count = rounds or (ROUNDS_OF_MANY if many else ROUNDS)
    asked = Asked(target=machine, recipe=wanted, peers=peers, rounds=count, **options)
    if (asked.source or "").endswith(".qcm"):
        if database is not None:
            raise click.UsageError(f"{asked.source} is a finished program; leave --database out")
        _bench_artifact(asked)
    else:
        times = _bench_tasks(asked)
        if database is not None and times:
            from qcompiler.targets import database as kernels

            kernels.write(database, machine.name, times)


def _bench_methods(
    source: str | None, recipe: Any, target: str, peers: Sequence[str], as_json: bool
) -> None:
    """Raises click.UsageError for a source that is no task."""
    from dataclasses import asdict

    from rich.console import Console

    from qcompiler.bench import methods

    if source is None or source not in methods.TASKS:
        raise click.UsageError(f"--methods needs one of {', '.join(methods.TASKS)}, got {source}")
    with progress(sys.stderr) as show:
        found = list(methods.rows(source, recipe, target, peers, show))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    Console().print(methods.table(source, recipe, found))


def _in_disguise(like: str) -> None:
    """Run this command as on a machine of that target, and exit; return where it runs so already.

    Raises click.BadParameter, MachineError.
    """
    from qcompiler import targets
    from qcompiler.bench import disguise
    from qcompiler.config import from_env

    if from_env().hidden:
        return
    try:
        wanted = targets.get(like).features
    except targets.TargetError as e:
        raise usage(e, "--like") from None
    sys.exit(disguise.run([sys.executable, "-m", "qcompiler", *sys.argv[1:]], wanted))


def peers_of(text: str) -> tuple[str, ...]:
    """Raises click.BadParameter for what is no peer, ImportError for one that is not installed."""
    from qcompiler.peers import require

    names = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in names:
        try:
            require(name)
        except ValueError as e:
            raise usage(e, "--against") from None
    return names


def _bench_tasks(asked: Asked) -> dict[str, dict[str, float]]:
    """Rows for a kernel database."""
    import torch  # noqa: F401  (before TVM, so that its absence is told at once)

    from qcompiler.bench.measure import Plan, wanted_recipes
    from qcompiler.bench.session import Wish, session

    own = (asked.peers or asked.every) and not given("recipe")
    recipes = None if own else wanted_recipes(asked.recipe)
    plan = Plan(asked.target, recipes, _modes(asked.peers), asked.threads, asked.rounds,
                asked.batch)  # fmt: skip
    per_op = asked.recipe.name if asked.per_op else ""
    wish = Wish(asked.peers, per_op, asked.seconds, asked.memory)
    with _shown(asked) as (show, say):
        results = session(_tasks(asked), plan, wish, show, say)
    if asked.as_json:
        click.echo(json.dumps(results.as_json(asked.source or "", plan), indent=1))
    return results.whole_times()


def _modes(peers: Iterable[str]) -> tuple[Mode, ...]:
    from qcompiler.peers import modes

    return tuple(mode for peer in peers for mode in modes(peer))


def _tasks(asked: Asked) -> list[Open]:
    from qcompiler.bench.works import ALL

    if asked.every:
        return [_task(work.name, asked) for work in ALL]
    return [_task(asked.source, asked)] if asked.source else []


def _task(source: str, asked: Asked) -> Open:
    """Raises click.BadParameter for a batch of what is no built-in work."""
    from qcompiler.bench import task, works
    from qcompiler.bench.session import with_calibration

    work = works.find(source)
    text = asked.calibration
    calibration: Any = (lambda: data_of(text)) if text else None
    if work is not None:
        own = work
        if calibration is None:
            return lambda batch: task.of_work(own, batch)
        return lambda batch: with_calibration(task.of_work(own, batch), calibration)
    if asked.batch > 1:
        names = ", ".join(w.name for w in works.ALL)
        raise click.BadParameter(
            f"{source} has the batch of its example inputs; only built-in works take one: {names}",
            param_hint="'--batch'",
        )
    model = _named(source)
    options = model.options
    return lambda batch: task.of_source(source, model.module, model.inputs, options, calibration)


def _named(source: str) -> Model:
    from qcompiler import zoo

    return Model(*zoo.load(source), {}) if source in zoo.MODELS else model_of(source)


@contextmanager
def _shown(asked: Asked) -> Iterator[tuple[Show, Callable[[Any], None]]]:
    """Where progress goes, and tables: nowhere where JSON is asked for."""
    with progress(sys.stderr if asked.as_json else sys.stdout) as show:
        if asked.as_json:
            yield show, lambda shown: None
            return
        from qcompiler.bench.table import console

        yield show, console().print


def _bench_artifact(asked: Asked) -> None:
    path = asked.source or ""
    if not Path(path).is_file():
        raise click.BadParameter(f"no file {path!r}", param_hint="'SOURCE'")
    if asked.peers or asked.memory or asked.seconds or asked.batch > 1:
        raise click.UsageError(
            f"{path} is a finished program: --against, --batch, --compile and --memory need the "
            "model; give its SOURCE or NAME"
        )
    from qcompiler.bench.artifact import bench_artifact

    with _shown(asked) as (show, say):
        found = bench_artifact(path, asked.threads, asked.rounds, asked.per_op, show, say)
    if asked.as_json:
        click.echo(json.dumps(found, indent=1))
