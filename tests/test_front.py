"""The front: its order, its file, and that each point can be made."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.graph import Graph
from qcompiler.tradeoff import FrontError, FrontPoint, best_of

DROPS = (-3.0, 0.0, 3.0)


def traced(seed: int = 0) -> tuple[Graph, list[torch.Tensor]]:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(32 * 36, 10)).eval()
    data = [torch.randn(1, 3, 10, 10) for _ in range(4)]
    return qc.trace(net, (data[0],)), data


def test_less_noise_takes_more_time_and_each_point_can_be_made() -> None:
    graph, data = traced()
    points = qc.front(graph, data, drops=DROPS)
    assert len(points) >= 2
    assert all(a.ms < b.ms and a.sqnr_db < b.sqnr_db for a, b in pairwise(points))
    for point in points:
        made = qc.quantize(graph, data, recipe="auto", max_drop=point.max_drop)
        floats = [n for n in made.nodes() if n.op.kind in ("conv2d", "linear")]
        assert len(floats) == point.floats


def test_an_interrupted_front_goes_on_where_it_was(tmp_path: Path) -> None:
    graph, data = traced()
    file = tmp_path / "front.json"

    def stop(what: str, done: int, total: int) -> None:
        if what == "front" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qc.front(graph, data, drops=DROPS, file=file, progress=stop)
    asked: list[int] = []

    def see(what: str, done: int, total: int) -> None:
        if what == "front":
            asked.append(done)

    whole = qc.front(graph, data, drops=DROPS, file=file, progress=see)
    assert asked == [2] and whole == qc.front(graph, data, drops=DROPS)
    other, items = traced(1)
    with pytest.raises(FrontError, match="the front of another model, data, recipe or times"):
        qc.front(other, items, drops=DROPS, file=file)
    file.write_text("{}")
    with pytest.raises(FrontError, match="expected a front that `qcompiler front` wrote"):
        qc.front(graph, data, drops=DROPS, file=file)


def test_points_that_others_are_as_good_as_are_left_out() -> None:
    made = [FrontPoint(d, ms, db, 0) for d, ms, db in
            ((0.0, 2.0, 20.0), (1.0, 1.0, 20.0), (2.0, 1.0, 19.0), (-1.0, 3.0, 30.0))]  # fmt: skip
    assert [(p.max_drop, p.ms) for p in best_of(made)] == [(1.0, 1.0), (-1.0, 3.0)]


def test_a_recipe_without_choices_has_no_front() -> None:
    graph, data = traced()
    with pytest.raises(ValueError, match="recipe 'int8' has nothing to choose"):
        qc.front(graph, data, recipe="int8")
