"""The text form: golden examples, round trips at every level, hostile texts."""

import copy
import errno
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import cnn, context, encoder, value

from qcompiler import atomic, passes
from qcompiler.graph import Graph
from qcompiler.interpret import interpret
from qcompiler.ops import Add, Clamp, Input, Mul, Reshape, Slice, const
from qcompiler.parse import ParseError, parse
from qcompiler.passes.fuse import fuse
from qcompiler.passes.layout import layout
from qcompiler.pipeline import Pipeline
from qcompiler.rewrite import named
from qcompiler.text import constants_of, load, save, short_float
from qcompiler.types import DType, TensorType, symbol

STAGES = Pipeline((*passes.QUANTIZE, layout, fuse))


@pytest.mark.parametrize("recipe", ["float32", "int8", "int8-dynamic"])
@pytest.mark.parametrize("make", [cnn, encoder])
def test_every_stage_round_trips(make, recipe):
    graph = make()
    ctx = context(graph, recipe)
    for stage in STAGES.stages(graph, ctx):
        text = str(stage)
        back = parse(text, constants_of(stage))
        assert str(back) == text
        assert [n.note for n in back.nodes()] == [n.note for n in stage.nodes()]
        assert torch.equal(interpret(back, *ctx.sample), interpret(stage, *ctx.sample))


def test_text_is_deterministic():
    first, second = cnn(), cnn()
    assert str(first) == str(second)


def test_golden_text(golden):
    batch = symbol("batch", 1, 64)
    x = Input(TensorType((batch, 4), DType.FLOAT32))(name="x")
    y = Clamp(lo=0.0)(Add()(x, const([0.1, 1e-30, -3.0, 7.5])), name="relu")
    z = Reshape((batch * 2, 2))(Slice(1, 0, 4)(y))
    golden(str(named(Graph((x,), (z, y), trees=("in", 'out "quoted"')))))


def test_save_and_load(tmp_path):
    graph = cnn()
    save(graph, tmp_path / "g.qir")
    assert str(load(tmp_path / "g.qir")) == str(graph)


@given(st.floats(width=32, allow_nan=False))
def test_float32_scales_survive(x):
    from qcompiler.parse import _float32

    assert _float32(float(short_float(x))) == x


@given(st.lists(st.floats(width=32), min_size=1, max_size=4))
@settings(max_examples=50)
def test_inline_constants_survive(values):
    x = value(len(values))
    graph = named(Graph((x,), (Add()(x, const(torch.tensor(values))),)))
    back = parse(str(graph), {})
    a, b = (next(n.op.value for n in g.nodes() if n.op.kind == "const") for g in (graph, back))
    assert a.view(torch.int32).tolist() == b.view(torch.int32).tolist() or a.isnan().any()


def test_symbols_survive():
    batch = symbol("batch", 2, 8)
    x = Input(TensorType((batch, 9), DType.FLOAT32))(name="x")
    graph = named(Graph((x,), (Slice(0, 0, batch // 2)(x), Reshape((batch * 3 + 0, 3))(x))))
    text = str(graph)
    assert "batch in 2..8" in text
    assert str(parse(text)) == text


HOSTILE = {
    "unknown op": ("%y = evil(%x) : float32[4]", "unknown op 'evil'"),
    "wrong type": ("%y = clamp(%x, lo=0.0) : float32[5]", "expected type float32[4]"),
    "undefined": ("%y = clamp(%z, lo=0.0) : float32[4]", "%z is used before it is defined"),
    "twice": ("%x = input() : float32[4]", "defined twice"),
    "code": ("%y = clamp(%x, lo=__import__('os').system('x')) : float32[4]", "line 3"),
    "no constant": ("%y = const('#00') : float32[9]", "is not among the constants"),
    "attribute": ("%y = clamp(%x, low=0.0) : float32[4]", "no attribute 'low'"),
    "bracket": ("%y = clamp(%x : float32[4]", "bracket"),
    "operand": ("%y = add(%x) : float32[4]", "line 3"),
}


@pytest.mark.parametrize("line, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text(line, message):
    text = f"graph @float {{\n%x = input() : float32[4]\n{line}\ninputs %x\nreturn %x\n}}"
    with pytest.raises(ParseError) as e:
        parse(text)
    assert message in str(e.value) and "line 3" in str(e.value)


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_noise_is_a_parse_error(noise):
    with pytest.raises(ParseError):
        parse(f"graph @float {{\n%x = input() : float32[4]\n{noise}\n}}")


def test_tampered_constant_is_found():
    graph = named(Graph((x := value(9),), (Add()(x, const(torch.randn(9))),)))
    table = {key: torch.zeros(9) for key in constants_of(graph)}
    with pytest.raises(ParseError, match="has hash"):
        parse(str(graph), table)


def test_deep_graphs_do_not_recurse():
    node = x = value(2)
    for _ in range(5000):
        node = Clamp(lo=-1.0)(node)
    graph = named(Graph((x,), (node,)))
    assert len(parse(str(graph)).nodes()) == 5001
    assert len(pickle.loads(pickle.dumps(graph)).nodes()) == 5001
    assert str(copy.deepcopy(graph)) == str(graph)


def test_a_text_reads_no_other_files(tmp_path):
    save(cnn(), tmp_path / "g.qir")
    store = tmp_path / "g.constants"
    (tmp_path / "secret.safetensors").write_bytes(next(store.iterdir()).read_bytes())
    path = tmp_path / "h.qir"
    path.write_text("graph @float {\n%c = const('#../secret') : float32[10]\n}")
    with pytest.raises(ParseError, match="is not among the constants"):
        load(path, store)


def test_float64_constants_keep_all_their_digits():
    x = value(1, dtype=DType.FLOAT64)
    graph = named(Graph((x,), (Mul()(x, const(torch.tensor([0.1]).double())),)))
    again = parse(str(graph), constants_of(graph))
    assert again.outputs[0].inputs[1].op.value.item() == torch.tensor(0.1).double().item()


def test_powers_of_a_symbol():
    n = symbol("n")
    x = Input(TensorType((n, n), DType.FLOAT32))(name="x")
    graph = named(Graph((x,), (Reshape((n * n,))(x),)))
    assert "n**2" in str(graph)
    assert str(parse(str(graph))) == str(graph)


def test_a_text_that_stops_early_or_goes_on_is_refused():
    text = str(cnn_of_nothing())
    with pytest.raises(ParseError, match="without its closing"):
        parse(text.rsplit("}", 1)[0])
    with pytest.raises(ParseError, match="nothing after"):
        parse(text + text)


def cnn_of_nothing():
    x = value(2)
    return named(Graph((x,), (Clamp(lo=0.0)(x),)))


def test_nodes_are_copied_as_what_they_are_and_pickled_flat():
    node = value(2)
    assert copy.copy(node) is node is copy.deepcopy(node)
    for _ in range(5000):
        node = Clamp(lo=-1.0)(node)
    again = pickle.loads(pickle.dumps(node))
    assert again.op == node.op and len(Graph((), (again,)).nodes()) == 5001


def test_a_graph_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    """A full disk, at the first constant and at the text; a folder that is not there."""
    graph = cnn()
    missing = tmp_path / "none" / "g.qir"
    with pytest.raises(OSError, match="cannot write: No such file") as caught:
        save(graph, missing)
    assert caught.value.filename == str(missing)
    path = tmp_path / "g.qir"
    for full in (".safetensors", ".qir"):
        monkeypatch.setattr(atomic.os, "replace", until_full(full))
        with pytest.raises(OSError, match=r"cannot write.*No space left") as caught:
            save(graph, path)
        assert caught.value.filename == str(path)
        assert list(tmp_path.iterdir()) == []


def until_full(suffix):
    replace = os.replace

    def replaced(part, target):
        if str(target).endswith(suffix):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), part)
        replace(part, target)

    return replaced


def test_a_failure_keeps_what_was_there(tmp_path, monkeypatch):
    graph, path, store = cnn(), tmp_path / "g.qir", tmp_path / "constants"
    (tmp_path / "g.part").write_text("a user's own")
    save(graph, path, store)
    next(iter(store.iterdir())).unlink()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(atomic.os, "replace", until_full(".qir"))
    with pytest.raises(OSError, match="No space left"):
        save(graph, path, store)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    (tmp_path / "h.constants").write_text("in the way")
    with pytest.raises(OSError, match=r"its constants, .*h.constants: File exists") as caught:
        save(graph, tmp_path / "h.qir")
    assert caught.value.filename == str(tmp_path / "h.qir")
