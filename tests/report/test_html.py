"""The page: complete, self-contained, and right about weights and ranges."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.ops import Linear, const
from qcompiler.recipe import Activations, RangeMethod, Recipe
from qcompiler.report import Section, describe, page, write_page
from qcompiler.report import plots as plots_module
from qcompiler.report.tensors import activations, weights
from qcompiler.rewrite import named
from tests import nets


@pytest.fixture(scope="module")
def graphs() -> tuple[Graph, Graph]:
    graph = nets.cnn()
    return graph, passes.quantize(graph, nets.context(graph))


class Strict(HTMLParser):
    """Collects text and links; fails on tags that do not nest."""

    VOID = ("meta", "br", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.ids += [v for v in [found.get("id")] if v and v.startswith(("w-", "a-"))]
        self.links += [v for v in (found.get("href"), found.get("src")) if v]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def read(text: str) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.stack == []
    return parser


def test_the_page_needs_nothing_else(graphs: tuple[Graph, Graph]) -> None:
    float_graph, graph = graphs
    text = page(describe(graph, float_graph), graph, float_graph)
    found = read(text)
    assert all(link.startswith("#") for link in found.links)
    assert not found.tags & {"script", "img", "link", "iframe", "image"}
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert "@import" not in text


def test_every_weight_has_a_histogram_and_a_link_to_it(graphs: tuple[Graph, Graph]) -> None:
    float_graph, graph = graphs
    found = read(page(describe(graph, float_graph), graph, float_graph))
    layers = {f"w-{w.layer}" for w in weights(graph, float_graph)}
    assert len(layers) == 7
    assert {i for i in found.ids if i.startswith("w-")} == layers
    assert {link[1:] for link in found.links if link.startswith("#w-")} == layers


def test_the_page_says_what_the_report_says(graphs: tuple[Graph, Graph]) -> None:
    report = describe(graphs[1], graphs[0], "some-machine")
    section = Section("Pictures <20>", ("", "top-1"), (("ours", "17 & more"),), "A remark.")
    text = page(report, graphs[1], graphs[0], "A title", [section])
    for fact in ("some-machine", "100.0 %", "A title", "Pictures &lt;20&gt;", "17 &amp; more"):
        assert fact in text
    for layer in report.layers:
        assert layer.name in text
    assert "graph @integer" in text
    kept = passes.quantize(nets.encoder(), nets.context(nets.encoder()))
    assert "softmax is exponential in its input" in page(describe(kept))


def test_the_same_report_gives_the_same_page(graphs: tuple[Graph, Graph]) -> None:
    first, second = (page(describe(graphs[1]), graphs[1], graphs[0]) for _ in range(2))
    assert first == second


def test_without_matplotlib_the_page_says_so(
    graphs: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots_module, "available", lambda: False)
    text = page(describe(graphs[1]), graphs[1], graphs[0])
    assert "matplotlib is not installed" in text
    assert not read(text).ids


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = describe(nets.cnn())
    write_page(tmp_path / "a.html", report, title="Written")
    assert "Written" in (tmp_path / "a.html").read_text()
    with pytest.raises(OSError):
        write_page(tmp_path / "absent" / "a.html", report)
    assert [f.name for f in tmp_path.iterdir()] == ["a.html"]


def linear(w: torch.Tensor) -> Graph:
    x = nets.value(1, w.shape[1])
    return named(Graph((x,), (Linear()(x, const(w, name="fc.weight"), name="fc"),)))


def test_a_weight_that_codes_express_exactly_shows_no_loss() -> None:
    w = torch.zeros(2, 4)
    w[0, 0], w[0, 2], w[1, 2] = 127 / 128, -3 / 128, 127 / 256
    graph = linear(w)
    quantized = passes.quantize(graph, nets.context(graph))
    (found,) = weights(quantized, graph)
    before, after = found.counts.before, found.counts.after
    assert before is not None
    assert found.sqnr_db == float("inf")
    assert (before == after).all()
    assert before.sum() == found.count == 8
    assert found.used == 3  # 127, -3 and 0


def test_histograms_hold_every_weight_once(graphs: tuple[Graph, Graph]) -> None:
    for found in weights(graphs[1], graphs[0]):
        counts = found.counts
        assert counts.before is not None and found.sqnr_db is not None
        assert counts.before.sum() == counts.after.sum() == found.count
        assert 25 < found.sqnr_db < 60
        assert np.all(np.diff(counts.edges) > 0)
    order = [w.macs for w in weights(graphs[1], graphs[0])]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(
    ("method", "top", "clipped"),
    [(RangeMethod.MINMAX, 3.0, 0.0), (RangeMethod.PERCENTILE, 0.5, 0.25)],
)
def test_ranges_seen_and_covered(method: RangeMethod, top: float, clipped: float) -> None:
    graph = linear(torch.eye(4))
    recipe = Recipe("mine", Activations.STATIC, method, percentile=75.0)
    data = [torch.tensor([[0.0, 0.25, 0.5, 3.0]])]
    (x,) = activations(passes.quantize(graph, Context(nets.ToyTarget(), recipe, data)))
    assert (x.name, x.seen) == ("x", (0.0, 3.0))
    assert x.covered == (0.0, pytest.approx(top, rel=2**-6))
    assert x.clipped == clipped


def test_histograms_of_activations_show_what_is_clipped() -> None:
    graph = linear(torch.eye(4))
    recipe = Recipe("mine", Activations.STATIC, RangeMethod.PERCENTILE, percentile=75.0)
    data = [torch.tensor([[0.0, 0.25, 0.5, 3.0]])]
    (x,) = activations(passes.quantize(graph, Context(nets.ToyTarget(), recipe, data)))
    assert x.counts is not None and x.counts.before is not None
    assert x.counts.before.sum() == pytest.approx(x.counts.after.sum()) == pytest.approx(4)
    (middles,) = np.nonzero(x.counts.after)
    assert x.counts.edges[0] == 0 and x.counts.edges[-1] == 3
    # 0.5 and what was 3 have the last code.
    assert x.counts.edges[middles[-1]] <= 0.5 + 3 / 81
    assert x.counts.after[middles[-1] - 1 :].sum() == pytest.approx(2, abs=0.5)


def test_activations_that_were_seen_have_histograms_on_the_page(graphs) -> None:
    text = page(describe(graphs[1]), graphs[1], graphs[0])
    shown = [a for a in activations(graphs[1]) if a.counts is not None]
    found = read(text)
    assert shown and {f"a-{a.name}" for a in shown} <= set(found.ids)


@pytest.mark.parametrize(
    ("count", "wide", "narrow"), [(2, 2, 2), (4, 4, 2), (5, 5, 3), (6, 6, 3), (8, 4, 3), (13, 5, 3)]
)
def test_rows_of_cards_are_even(graphs, count: int, wide: int, narrow: int) -> None:
    """Six stand in one row or in two of three: none wraps alone, none is stretched."""
    times = {f"program {k}": 1.0 for k in range(count - 2)}
    text = page(replace(describe(graphs[1]), times_ms=times))
    assert text.count('<div class="card">') == count
    assert f'<div class="cards" style="--wide: {wide}; --narrow: {narrow}">' in text
    assert "repeat(var(--wide), minmax(0, 1fr))" in text
    assert not re.search(r"\.card \{[^}]*flex", text)
