"""Methods side by side: what rounding and scaling do to a pretrained model's accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qcompiler.recipe import Recipe, Rounding, Scaling

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

CALIBRATION, HELD_OUT = 32, 32
"""Items of a task's data; no item is in both."""
WINDOWS = 8
"""Windows of 256 tokens that perplexity is measured on, and twice as many to calibrate on."""

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
    """A method's result: SQNR in dB against float32 over all held-out outputs, the metric, seconds
    of `quantize`, and the most memory of its process in MB, torch and the model included."""

    scaling: str
    rounding: str
    sqnr_db: float
    metric: float
    seconds: float
    peak_mb: float


def rows(name: str, recipe: Recipe, target: str, progress: Any) -> Iterable[Row]:
    """Of every method, each in a process of its own; in float32 the first (its SQNR is inf)."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    methods = [None, *((s, r) for s, r in product(Scaling, Rounding) if sensible(s, recipe))]
    for done, method in enumerate(methods, 1):
        chosen = None
        if method is not None:
            chosen = replace(recipe, scaling=method[0], rounding=method[1])
        # A process of its own, so that the most memory is that of one method.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool.submit(measured, name, chosen, target).result()
        progress(f"measure {name}", done, len(methods))


def sensible(scaling: Scaling, recipe: Recipe) -> bool:
    """AWQ is about weights of few bits; with those and float activations nothing is to smooth."""
    if scaling is Scaling.AWQ:
        return recipe.weight_bits < 8
    return scaling is not Scaling.SMOOTH or recipe.activations.value != "float"


def measured(name: str, recipe: Recipe | None, target: str) -> Row:
    """The row of a recipe; None: float32."""
    import resource

    import torch

    from qcompiler.api import quantize
    from qcompiler.frontend import trace
    from qcompiler.interpret import run
    from qcompiler.report.quality import sqnr

    task = TASKS[name]
    calibration, held_out = task.data()
    graph = trace(task.module(), held_out[0])
    with torch.no_grad():
        wanted = [run(graph, item)[0] for item in held_out]
    if recipe is None:
        return Row("", "float32", float("inf"), task.measure(wanted, held_out), 0.0, 0.0)
    start = time.perf_counter()
    made = quantize(graph, calibration, target, recipe)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.no_grad():
        got = [run(made, item)[0] for item in held_out]
    db = sqnr(torch.cat([y.reshape(-1) for y in wanted]), torch.cat([y.reshape(-1) for y in got]))
    metric = task.measure(got, held_out)
    return Row(recipe.scaling.value, recipe.rounding.value, db, metric, seconds, peak)


def table(name: str, recipe: Recipe, found: Sequence[Row]) -> Table:
    from rich.table import Table

    made = Table(title=f"{name}: {recipe.name}, by method")
    for heading in ("scaling", "rounding", "SQNR dB", TASKS[name].metric, "quantize s", "peak MB"):
        made.add_column(heading, justify="left" if heading in ("scaling", "rounding") else "right")
    for row in found:
        plain = row.rounding == "float32"
        made.add_row(
            row.scaling, row.rounding, "-" if plain else f"{row.sqnr_db:.2f}",
            f"{row.metric:.5g}", "-" if plain else f"{row.seconds:.0f}",
            "-" if plain else f"{row.peak_mb:.0f}",
        )  # fmt: skip
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
        "smollm2": Task(_smollm2, _windows, "perplexity", _perplexity),
    }
)
"""SmolLM2's weights were 4-bit already before they were made float32: a 4-bit result of it looks
better than it should."""
