"""The rewrite driver: names, notes, uses, near misses, termination, type safety."""

import pytest
from nets import value

from qcompiler.context import Context
from qcompiler.graph import Graph, Note
from qcompiler.ops import Abs, Add, Clamp, Mul, Neg, Reshape, const
from qcompiler.rewrite import Miss, RewriteError, equation, named, rewrite


def double_negation(node, sweep):
    """-(-x) => x."""
    from qcompiler.graph import Node

    match node:
        case Node(Neg(), (Node(Neg(), (x,)),)):
            return (
                x if sweep.only_use(node.inputs[0]) else Miss(f"%{node.inputs[0].name} is shared")
            )
    return None


def graph_of(*outputs, x):
    return named(Graph((x,), outputs))


def test_root_keeps_name_and_note():
    def abs_into_mul(node, sweep):
        """|x| => x * 2 (wrong, but a rewrite)."""
        return Mul()(node.inputs[0], const(2.0)) if isinstance(node.op, Abs) else None

    x = value(3)
    graph = graph_of(Abs()(x, name="size", note=Note(origin="net.py:7")), x=x)
    (out,) = rewrite(graph, [abs_into_mul], Context()).outputs
    assert (out.op, out.name, out.note.origin) == (Mul(), "size", "net.py:7")
    assert out.inputs[1].name == "size.const"
    assert out.inputs[1].note.origin == "net.py:7"


def test_existing_node_keeps_its_own_name():
    x = value(3)
    graph = graph_of(Neg()(Neg()(Abs()(x, name="a"))), x=x)
    assert rewrite(graph, [double_negation], Context()).outputs[0].name == "a"


def test_near_miss_is_heard():
    x = value(3)
    inner = Neg()(x, name="inner")
    heard = []
    ctx = Context(listen=(lambda *event: heard.append(event),))
    graph = graph_of(Neg()(inner, name="outer"), Abs()(inner), x=x)
    assert rewrite(graph, [double_negation], ctx) is graph
    assert [(e[0], e[2].name, e[3]) for e in heard] == [("missed", "outer", "%inner is shared")]


def test_an_output_counts_as_a_use():
    x = value(3)
    inner = Neg()(x)
    graph = graph_of(Neg()(inner), inner, x=x)
    assert len(rewrite(graph, [double_negation], Context()).nodes()) == 3


def test_same_operand_twice_is_two_uses():
    x = value(3)
    seen = []

    def watch(node, sweep):
        """nothing => nothing."""
        if isinstance(node.op, Add):
            seen.append(sweep.only_use(node.inputs[0]))

    inner = Neg()(x)
    rewrite(graph_of(Add()(inner, inner), x=x), [watch], Context())
    assert seen == [False]


def test_type_change_is_refused():
    def wrong(node, sweep):
        """clamp(x) => reshape(x)."""
        return Reshape((3, 1))(node.inputs[0]) if isinstance(node.op, Clamp) else None

    x = value(3)
    with pytest.raises(RewriteError, match=r"wrong.*%clamp.*expected float32\[3\].*float32\[3,1\]"):
        rewrite(graph_of(Clamp(lo=0.0)(x), x=x), [wrong], Context())


def test_endless_rules_are_found():
    def forever(node, sweep):
        """|x| => ||x||."""
        return Abs()(node) if isinstance(node.op, Abs) else None

    x = value(3)
    with pytest.raises(RewriteError, match="forever"):
        rewrite(graph_of(Abs()(x), x=x), [forever], Context())


def test_equation_is_the_docstring():
    assert equation(double_negation) == "-(-x) => x."


def test_names_are_unique_and_stable():
    x = value(3)
    graph = graph_of(Add()(Neg()(x, name="n"), Abs()(x, name="n")), x=x)
    assert [n.name for n in graph.nodes()] == ["x", "n", "n_2", "add"]
    assert named(graph) is graph
