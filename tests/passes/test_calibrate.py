"""Calibration: what is measured, which data is accepted, and what is said about the rest."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import value

from qcompiler.context import Context
from qcompiler.data import DataError, pieces
from qcompiler.graph import Graph, Level, Node
from qcompiler.interpret import interpret
from qcompiler.ops import Add, Clamp, Conv2d, Gather, Get, Input, Softmax, Tuple, const
from qcompiler.ops.values import ALIGNMENT
from qcompiler.passes.calibrate import calibrate
from qcompiler.recipe import recipe_of
from qcompiler.rewrite import named
from qcompiler.stats import EMPTY, Stats
from qcompiler.types import DType, Sym, TensorType, symbol

STATIC = recipe_of("int8")


def given_input(name: str, *shape: int | Sym, dtype: DType = DType.FLOAT32) -> Node:
    return Input(TensorType(shape, dtype))(name=name)


def conv_net(batch: int | Sym = 1) -> Graph:
    g = torch.Generator().manual_seed(0)
    x = given_input("x", batch, 3, 8, 8)
    w = const(torch.randn(4, 3, 3, 3, generator=g), name="w")
    y = Conv2d(padding=((1, 1), (1, 1)))(x, w, name="conv")
    twice = Add()(y, y, name="twice")
    return Graph((x,), (Clamp(0.0)(twice, name="relu"),))


def two_inputs(batch: int | Sym = 2) -> Graph:
    ids = given_input("ids", batch, 5, dtype=DType.INT64)
    mask = given_input("mask", batch, 5)
    table = const(torch.arange(20, dtype=torch.float32), name="table")
    return Graph((ids, mask), (Add()(Gather(0)(table, ids, name="rows"), mask, name="sum"),))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def context(data: Any) -> Context:
    return Context(recipe=STATIC, data=data)


def stats_of(graph: Graph, data: Any) -> dict[str, Stats | None]:
    done = calibrate.run(graph, context(data))
    return {n.name: n.note.stats for n in done.nodes()}


def test_which_values_are_measured() -> None:
    graph, x = conv_net(), images(3)
    found = stats_of(graph, [x[k : k + 1] for k in range(3)])
    assert found["w"] is None
    assert found["twice"] is None  # only the clamp reads it
    expected = {"x": EMPTY, "conv": EMPTY, "relu": EMPTY}

    def see(node: Node, value: torch.Tensor) -> None:
        if node.name in expected:
            expected[node.name] = expected[node.name].merge(Stats.of(value))

    for k in range(3):
        interpret(graph, x[k : k + 1], see=see)
    assert {k: v for k, v in found.items() if v is not None} == expected


def test_the_graph_keeps_its_nodes_and_notes() -> None:
    graph = conv_net()
    (relu,) = graph.outputs
    graph = replace(graph, outputs=(relu.with_note(origin="net.relu"),))
    done = calibrate.run(graph, context([images(1)]))
    assert done.level is Level.CALIBRATED
    assert done.outputs[0].note.origin == "net.relu"
    assert [n.name for n in done.nodes()] == [n.name for n in graph.nodes()]
    assert all(n.note.stats is None for n in graph.nodes())
    x = images(1, 4)
    assert torch.equal(interpret(done, x), interpret(graph, x))


def test_what_a_clamp_and_something_else_reads_is_measured() -> None:
    graph = conv_net()
    (relu,) = graph.outputs
    (twice,) = relu.inputs
    for other in (twice, Add()(twice, relu, name="sum")):
        found = stats_of(replace(graph, outputs=(relu, other)), [images(1)])
        assert found["twice"] is not None


def test_integer_inputs_and_tuples_are_not_measured() -> None:
    graph = two_inputs()
    pair = Tuple()(graph.outputs[0], graph.inputs[0], name="pair")
    graph = named(replace(graph, outputs=(Get(0)(pair, name="first"), Get(1)(pair, name="second"))))
    found = stats_of(graph, [(torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5))])
    assert found["ids"] is None and found["pair"] is None and found["second"] is None
    assert found["first"] is not None and found["first"].count == 10


def test_batches_and_order_give_the_same_statistics() -> None:
    x = images(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    one = stats_of(conv_net(), list(x.split(1)))
    assert stats_of(conv_net(), list(x[order].split(8))) == one
    assert stats_of(conv_net(), [x]) == one
    assert stats_of(conv_net(symbol("batch")), list(x[order].split(2))) == one


def test_masked_values_stay_out() -> None:
    x = given_input("x", 1, 4)
    mask = const(torch.tensor([0.0, 0.0, -torch.inf, torch.finfo(torch.float32).min]), name="mask")
    scores = Add()(x, mask, name="scores")
    found = stats_of(Graph((x,), (Softmax()(scores, name="p"),)), [torch.ones(1, 4)])
    scores_stats = found["scores"]
    assert scores_stats is not None
    assert (scores_stats.count, scores_stats.masked, scores_stats.low) == (2, 2, 1.0)


def test_each_piece_starts_from_the_initial_state() -> None:
    x, s = given_input("x", 1, 2), given_input("s", 1, 2)
    total = Add()(x, s, name="total")
    graph = Graph((x,), (total,), ((s, total),), initial=(const(torch.ones(1, 2), name="first"),))
    found = stats_of(graph, [torch.full((3, 2), 5.0)])["total"]
    assert found is not None and (found.count, found.low, found.high) == (6, 6.0, 6.0)


def test_without_data_only_the_level_changes() -> None:
    graph = conv_net()
    done = calibrate.run(graph, Context())
    assert done.level is Level.CALIBRATED and done.outputs[0] is graph.outputs[0]


def test_progress_counts_items() -> None:
    calls: list[tuple[str, int, int]] = []
    ctx = replace(context([images(2), images(3)]), progress=lambda *a: calls.append(a))
    calibrate.run(conv_net(), ctx)
    assert calls == [("calibrate", 1, 2), ("calibrate", 2, 2)]


# Data ------------------------------------------------------------------------------------------


def sizes(graph: Graph, data: Any) -> list[list[tuple[int, ...]]]:
    return [[tuple(v.shape) for v in piece] for piece in pieces(data, graph)]


IDS, MASK = torch.ones(4, 5, dtype=torch.int64), torch.ones(4, 5)


@pytest.mark.parametrize(
    "item",
    [
        (IDS, MASK),
        [IDS, MASK],
        [[IDS], (MASK,)],
        {"mask": MASK, "ids": IDS},
        (IDS.numpy(), MASK.numpy()),
    ],
)
def test_items_by_position_and_by_name(item: Any) -> None:
    assert sizes(two_inputs(), [item, item]) == [[(2, 5), (2, 5)]] * 4
    assert sizes(two_inputs(symbol("n")), [item]) == [[(1, 5), (1, 5)]] * 4


def test_pieces_are_the_rows_in_order() -> None:
    x = images(6)
    parts = [p[0] for p in pieces([x[:4], x[4:].numpy()], conv_net(2))]
    assert [tuple(p.shape) for p in parts] == [(2, 3, 8, 8)] * 3
    assert torch.equal(torch.cat(parts), x)


def test_a_bare_tensor_or_mapping_is_one_item_and_a_stack_is_many() -> None:
    assert sizes(conv_net(), images(2)) == [[(1, 3, 8, 8)]] * 2
    assert sizes(conv_net(), images(2)[:, None]) == [[(1, 3, 8, 8)]] * 2
    assert sizes(conv_net(), {"x": images(2)}) == [[(1, 3, 8, 8)]] * 2
    assert sizes(conv_net(), images(2)[:, None].numpy()) == [[(1, 3, 8, 8)]] * 2


def test_a_symbolic_batch_takes_its_least_size() -> None:
    assert sizes(conv_net(symbol("batch", 2)), [images(4)]) == [[(2, 3, 8, 8)]] * 2


def test_an_input_of_just_its_traced_size_goes_with_every_piece() -> None:
    assert sizes(two_inputs(), [(IDS, MASK[:2])]) == [[(2, 5), (2, 5)]] * 2


def test_a_scalar_input() -> None:
    x, s = given_input("x", 1, 2), given_input("s")
    graph = Graph((x, s), (Add()(x, s, name="y"),))
    assert sizes(graph, [(torch.ones(2, 2), np.float32(3))]) == [[(1, 2), ()]] * 2


def test_iterators_are_read_one_item_at_a_time() -> None:
    alive: list[int] = []

    @dataclass
    class Loud:
        number: int

        def __del__(self) -> None:
            alive.remove(self.number)

    def items() -> Iterator[dict[str, torch.Tensor]]:
        for k in range(4):
            assert len(alive) <= 1
            x = images(1)
            x.loud = Loud(k)  # type: ignore[attr-defined]
            alive.append(k)
            yield {"x": x}
            del x

    found = stats_of(conv_net(), items())
    assert found["x"] is not None and found["x"].count == 4 * 3 * 64


def bad_nan() -> list[torch.Tensor]:
    x = images(2)
    x[1, 0, 0, 0] = torch.nan
    return [images(2), x]


def bad_inf() -> list[torch.Tensor]:
    x = images(1)
    x[0, 0, 0, 0] = -torch.inf
    return [x]


USED_UP = iter([])
LINE = r"%x: float32\[1,3,8,8\]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "recipe 'int8' has static activations: expected calibration data, got none"),
        ([], "calibration data is empty"),
        (USED_UP, "an iterator that was used before"),
        (bad_nan(), rf"item 1, input {LINE}: expected finite values, got NaN; drop"),
        (bad_inf(), rf"item 0, input {LINE}: expected finite values, got inf"),
        ([(images(1), 7)], rf"item 0: expected 1 input \({LINE}\), got 2 values; .*image, label"),
        ([[images(2), torch.tensor([1, 2])]], r"DataLoader yields them.*\[x for x, _ in loader\]"),
        ([images(1)[0]], r"expected float32\[1,3,8,8\], got float32\[3,8,8\]; .*x\[None\]"),
        ([torch.zeros(1, 3, 9, 8)], r"item 0: input %x: expected float32.*got float32\[1,3,9,8\]"),
        ([images(1).double()], r"got float64.*convert it with \.to\(torch\.float32\)"),
        ([images(0)], "axis 0 has 0, expected a multiple of the traced batch size 1"),
        ([images(1).to_sparse()], rf"item 0, input {LINE}: expected a dense tensor, got torch.sp"),
        ([images(1).to("meta")], rf"item 0, input {LINE}: expected a tensor on the CPU, got meta"),
        ([np.array([["a"]])], rf"item 0, input {LINE}: expected an array of numbers, got .*<U1"),
        (["a.png"], "expected a tensor or array, got str"),
        ([{"image": images(1)}], "unknown input 'image'; the model's inputs are x"),
        ([{}], "no input 'x'; the model's inputs are x"),
        (3, "expected an iterable of tensors, tuples or mappings, got int"),
        ("images/", "got str"),
    ],
)
def test_data_that_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibrate.run(conv_net(), context(data))


@pytest.mark.parametrize(
    ("graph", "item", "message"),
    [
        (conv_net(4), images(6), r"axis 0 has 6, expected a multiple of the .* 4; .*drop_last"),
        (two_inputs(1), (IDS, MASK[:3]), "expected 4 pieces along axis 0 .*, got 3"),
        (two_inputs(symbol("n")), (IDS, MASK[:, :4]), r"expected float32\[n,5\], got float32\[1,4"),
        (two_inputs(), (IDS, torch.ones(4, dtype=torch.int64)), r"got int64\[4\]; an item has a"),
        (two_inputs(), (IDS, MASK.long()), r"float32\); if the items are \(image, label\) pairs"),
    ],
)
def test_items_that_do_not_fit(graph: Graph, item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(pieces([item], graph))


def test_ids_outside_of_their_table_name_the_item() -> None:
    with pytest.raises(DataError, match=r"calibration item 1: %rows = gather.*got 21"):
        calibrate.run(two_inputs(4), context([(IDS, MASK), (IDS + 20, MASK)]))


def test_one_symbol_with_two_sizes() -> None:
    n = symbol("n")
    a, b = given_input("a", 1, n), given_input("b", 1, n)
    graph = Graph((a, b), (Add()(a, b, name="y"),))
    with pytest.raises(DataError, match="item 0: input %b: n is 3 and 4 at once"):
        list(pieces([(torch.ones(1, 3), torch.ones(1, 4))], graph))


def test_pieces_lie_aligned_however_the_items_do() -> None:
    """Matrix libraries give other last bits at other addresses: a view is copied."""
    whole = torch.randn(4 * 13 + 1)
    item = whole[1:].reshape(4, 13)
    x = value(1, 13)
    found = [piece for (piece,) in pieces([item], named(Graph((x,), (x,))))]
    assert all(piece.data_ptr() % ALIGNMENT == 0 for piece in found)
    assert torch.equal(torch.cat(found), item)
    constant = const(item[1:])
    assert constant.op.value.data_ptr() % ALIGNMENT == 0
