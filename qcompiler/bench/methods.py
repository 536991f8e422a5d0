"""Methods side by side: what rounding and scaling do to a pretrained model's accuracy, and what
other quantizers make of it with the same data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qcompiler.bench.works import family_of
from qcompiler.peers import Job, first_line, methods
from qcompiler.peers.mode import SATURATES
from qcompiler.recipe import Activations, Recipe, Rounding, Scaling, recipe_of
from qcompiler.timing import in_long_turns

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

CALIBRATION, HELD_OUT = 32, 32
"""Items of a task's data; no item is in both."""
WINDOWS = 8
"""Windows of 256 tokens that perplexity is measured on, and twice as many to calibrate on."""
DOCUMENT = 128
"""Tokens of a document whose similarity to others is judged; longer ones are cut."""
ROUNDS = 15
"""Turns that a call's time is the median of."""

Items = Sequence[tuple[Any, ...]]
Metric = Callable[[Sequence["Tensor"], Items], float]
"""Of the outputs for each held-out item, and the items."""


@dataclass(frozen=True, eq=False)
class Task:
    """A pretrained model with data. data: (calibration, held-out) items, real ones. metric: the
    name of what is measured beside SQNR, and how."""

    module: Callable[[], Any]
    data: Callable[[], tuple[Items, Items]]
    metric: str
    measure: Metric


@dataclass(frozen=True)
class Row:
    """A method's result: SQNR in dB against float32 over all held-out outputs, the metric, the
    median milliseconds of a call on one core, seconds of quantizing (of peers with what their
    runtime makes of it), and the most memory of its process in MB by then, torch and the model
    included. error: why there is none."""

    quantizer: str
    method: str
    sqnr_db: float = math.nan
    metric: float = math.nan
    ms: float = math.nan
    seconds: float = math.nan
    peak_mb: float = math.nan
    error: str = ""


def rows(
    name: str, recipe: Recipe, target: str, peers: Sequence[str], progress: Any
) -> Iterator[Row]:
    """Float32, then every method of ours by that recipe and of those peers, each in a process of
    its own: so the most memory is that of one method."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    ours = [recipe_of("float32"), *(
        replace(recipe, scaling=s, rounding=r)
        for s, r in product(Scaling, Rounding) if sensible(s, recipe)
    )]  # fmt: skip
    jobs = [partial(measured, name, wanted, target) for wanted in ours]
    jobs += [partial(of_peer, name, peer, m.name) for peer in peers for m in methods(peer)]
    for done, job in enumerate(jobs):
        progress(f"measure {name}", done, len(jobs))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool.submit(job).result()


def sensible(scaling: Scaling, recipe: Recipe) -> bool:
    """AWQ is about weights of few bits; with those and float activations nothing is to smooth."""
    if scaling is Scaling.AWQ:
        return recipe.weight_bits < 8
    return scaling is not Scaling.SMOOTH or recipe.activations.value != "float"


def measured(name: str, recipe: Recipe, target: str) -> Row:
    """The row of a recipe."""
    from qcompiler.api import build, quantize
    from qcompiler.frontend import trace
    from qcompiler.runtime import CompiledModel

    task = TASKS[name]
    calibration, held_out = task.data()
    module = task.module()
    graph = trace(module, held_out[0])
    start = time.perf_counter()
    made = quantize(graph, calibration, target, recipe)
    seconds, peak = time.perf_counter() - start, _peak_mb()
    model = CompiledModel(build(made, target).bundle, threads=1)
    calls = [partial(model, *item) for item in held_out]
    plain = recipe.activations is Activations.NONE
    method = "float32" if plain else f"{recipe.scaling.value} + {recipe.rounding.value}"
    row = Row("qcompiler", method, seconds=seconds, peak_mb=peak)
    return _with_results(row, task, module, held_out, [call() for call in calls], calls[0])


def of_peer(name: str, peer: str, method: str) -> Row:
    """The row of a peer's method; why there is none where it raises."""
    from tempfile import TemporaryDirectory

    from qcompiler.peers.exported import exported

    task = TASKS[name]
    calibration, held_out = task.data()
    module = task.module()
    mode = next(m for m in methods(peer) if m.name == method)
    with TemporaryDirectory() as folder:
        job = Job(name, module, held_out[0], tuple(calibration), family_of(module), 1,
                  Path(folder))  # fmt: skip
        try:
            exported(job)
            start = time.perf_counter()
            program = mode.prepare(job)
        except Exception as e:  # of many kinds
            return Row(peer, method, error=first_line(e))
        seconds, peak = time.perf_counter() - start, _peak_mb()
        assert program.on is not None
        outputs = [program.on(item).outputs()[0] for item in held_out]
        label = f"{method} *" if mode.note() else method
        row = Row(peer, label, seconds=seconds, peak_mb=peak)
        return _with_results(row, task, module, held_out, outputs, program.call)


def _with_results(
    row: Row, task: Task, module: Any, held_out: Items, outputs: Sequence[Any],
    call: Callable[[], Any],
) -> Row:  # fmt: skip
    """With what is to be said of outputs, one for each held-out item, and of a call."""
    import torch

    from qcompiler.report.quality import sqnr

    got = [torch.as_tensor(y).float() for y in outputs]
    with torch.no_grad():
        wanted = [module(*item) for item in held_out]
    flat = [torch.cat([y.reshape(-1) for y in ys]) for ys in (wanted, got)]
    spent = in_long_turns({"": call}, ROUNDS)[""]
    metric = task.measure(got, held_out)
    return replace(row, sqnr_db=sqnr(*flat), metric=metric, ms=spent.median)


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(name: str, recipe: Recipe, found: Sequence[Row]) -> Table:
    from rich.table import Table

    made = Table(title=f"{name}: {recipe.name}, by method")
    headings = ("quantizer", "method", "SQNR dB", TASKS[name].metric, "ms", "quantize s", "peak MB")
    for heading in headings:
        made.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for row in found:
        if row.error:
            made.add_row(row.quantizer, f"{row.method}: {row.error}")
            continue
        made.add_row(
            row.quantizer, row.method, f"{row.sqnr_db:.2f}", f"{row.metric:.5g}",
            f"{row.ms:.4g}", f"{row.seconds:.0f}", f"{row.peak_mb:.0f}",
        )  # fmt: skip
    if any(row.method.endswith(" *") for row in found):
        made.caption = f"* {SATURATES}"
    return made


def _lite0() -> Any:
    from qcompiler.zoo import load

    return load("efficientnet_lite0")[0]


def _pictures() -> tuple[Items, Items]:
    from qcompiler.zoo.data import imagenet20, lite0_calibration, preprocess

    shown = preprocess(imagenet20()[0]).split(1)
    return [(x,) for x in lite0_calibration(CALIBRATION)], [(x,) for x in shown]


def _top1(outputs: Sequence[Tensor], items: Items) -> float:
    from qcompiler.zoo.data import imagenet20

    labels = imagenet20()[1]
    return float(sum(int(y.argmax()) == int(k) for y, k in zip(outputs, labels, strict=True)))


def _minilm() -> Any:
    from qcompiler.zoo.minilm import load_minilm

    return load_minilm()


def _sentences() -> tuple[Items, Items]:
    from qcompiler.zoo.data import minilm_batches

    return list(minilm_batches(CALIBRATION)), list(minilm_batches(HELD_OUT, split="test"))


def _cosine(outputs: Sequence[Tensor], items: Items) -> float:
    """The mean cosine to what the float model gives."""
    import torch

    model = _minilm()
    with torch.no_grad():
        wanted = [model(*item) for item in items]
    pairs = zip(wanted, outputs, strict=True)
    return sum(float(torch.cosine_similarity(a, b).mean()) for a, b in pairs) / len(outputs)


def _documents() -> tuple[Items, Items]:
    from qcompiler.zoo.data import lee50, sentences
    from qcompiler.zoo.minilm import tokenize

    parts = sentences(4 * CALIBRATION, "calibration")
    seen = [" ".join(parts[i : i + 4]) for i in range(0, len(parts), 4)]
    return tuple(
        list(zip(ids.split(1), mask.split(1), strict=True))
        for ids, mask in (tokenize(texts, DOCUMENT) for texts in (seen, lee50()[0]))
    )  # type: ignore[return-value]


def _pearson(outputs: Sequence[Tensor], items: Items) -> float:
    """Of cosines between documents with how similar people found them."""
    import torch

    from qcompiler.zoo.data import lee50

    judged = torch.as_tensor(lee50()[1])
    found = torch.nn.functional.normalize(torch.cat(list(outputs)))
    upper = torch.triu_indices(len(judged), len(judged), 1)
    pairs = torch.stack([(found @ found.T)[tuple(upper)].double(), judged[tuple(upper)]])
    return float(torch.corrcoef(pairs)[0, 1])


def _smollm2() -> Any:
    from qcompiler.zoo.smollm2 import load_smollm2

    return load_smollm2()


def _windows() -> tuple[Items, Items]:
    from qcompiler.zoo.data import sentences
    from qcompiler.zoo.smollm2 import windows

    texts = (sentences(1000, "calibration"), 2 * WINDOWS), (sentences(130), WINDOWS)
    seen, held = ([(w,) for w in windows(" ".join(text), count)] for text, count in texts)
    return seen, held


def _perplexity(outputs: Sequence[Tensor], items: Items) -> float:
    import torch
    import torch.nn.functional as F

    losses = [F.cross_entropy(y[0, :-1], ids[0, 1:]) for y, (ids,) in
              zip(outputs, items, strict=True)]  # fmt: skip
    return float(torch.stack(losses).mean().exp())


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "efficientnet_lite0": Task(_lite0, _pictures, "top-1 of 20", _top1),
        "minilm": Task(_minilm, _sentences, "cosine", _cosine),
        "lee50": Task(_minilm, _documents, "Pearson", _pearson),
        "smollm2": Task(_smollm2, _windows, "perplexity", _perplexity),
    }
)
"""SmolLM2's weights were 4-bit already before they were made float32: a 4-bit result of it looks
better than it should."""
