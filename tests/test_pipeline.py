"""Pipelines: orders checked when built, results verified, observers, reproducers."""

import io
import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from nets import cnn, context, encoder, samples, value

import qcompiler as qc
from qcompiler import passes
from qcompiler.context import Context
from qcompiler.graph import Graph, Level
from qcompiler.observers import Checker, CheckError, Dumper, Printer, Reproducer, Timer, apart
from qcompiler.ops import Abs, Clamp, Neg
from qcompiler.passes.decompose import decompose
from qcompiler.pipeline import (
    Pass,
    PassError,
    Pipeline,
    PipelineError,
    declare,
    graph_pass,
    rewrites,
)
from qcompiler.rewrite import named
from qcompiler.types import DType, TensorType
from qcompiler.verify import VerifyError


def small() -> Graph:
    x = value(3)
    return named(Graph((x,), (Abs()(Neg()(x)),)))


@graph_pass("wrong-type", Level.FLOAT)
def wrong_type(graph, ctx):
    """A pass that forgets to infer."""
    (out,) = graph.outputs
    return replace(graph, outputs=(replace(out, type=TensorType((7,), DType.FLOAT32)),))


@graph_pass("wrong-numbers", Level.FLOAT, exact=True)
def wrong_numbers(graph, ctx):
    """A pass that says exact and is not."""
    (out,) = graph.outputs
    return replace(graph, outputs=(Clamp(lo=0.0, hi=1e-3)(out.inputs[0], name=out.name),))


def test_wrong_order_names_both_passes():
    with pytest.raises(
        PipelineError, match=r"integerize needs QDQ, but fold leaves FLOAT"
    ):
        Pipeline((decompose, passes.simplify, passes.fold, passes.integerize))


def test_neighbours_with_levels_do_not_commute():
    leveled = [p for p in passes.QUANTIZE if p.gives is not None]
    for a, b in itertools.pairwise(leveled):
        with pytest.raises(PipelineError):
            Pipeline((b, a))


def test_wrong_level_of_the_graph():
    with pytest.raises(PipelineError, match="calibrate needs FLOAT, but the graph is at PLANNED"):
        Pipeline((passes.ALL[3],))(replace(small(), level=Level.PLANNED))


def test_result_is_verified_and_the_pass_named():
    with pytest.raises(VerifyError, match=r"after wrong-type: .*float32\[7\]"):
        Pipeline((wrong_type,))(small())


def test_check_finds_wrong_numbers():
    graph = small()
    ctx = Context(sample=(torch.randn(3),))
    with pytest.raises(CheckError, match="after wrong-numbers: %abs"):
        Pipeline((wrong_numbers,))(graph, ctx, (Checker(),))


@pytest.mark.parametrize("make", [cnn, encoder])
@pytest.mark.parametrize("recipe", ["float32", "int8", "int8-dynamic"])
def test_exact_passes_are_exact(make, recipe):
    graph = make()
    Pipeline((*passes.QUANTIZE, *passes.BUILD))(graph, context(graph, recipe), (Checker(),))


def test_options_are_fields():
    @declare("numbered", Level.FLOAT)
    @dataclass(frozen=True)
    class Numbered(Pass):
        """A pass with an option."""

        count: int = 3

        def run(self, graph, ctx):
            return graph

    assert str(Numbered()) == "numbered"
    assert str(Numbered(count=4)) == "numbered{count=4}"


def test_bisect_runs_the_first_optional_passes():
    graph = cnn()
    pipeline = passes.quantize
    ran = list(pipeline.stages(graph, context(graph), bisect=2))
    leveled = [p for p in pipeline.passes if not p.optional]
    assert len(ran) == len(leveled) + 2
    assert ran[-1].level is Level.INTEGER


@pytest.mark.parametrize("recipe", ["float32", "int8", "int8-dynamic"])
def test_any_bisection_builds_a_program_that_verifies(monkeypatch, recipe):
    graph = encoder()
    data = samples(graph)
    for count in range(passes.quantize.optional + passes.build.optional + 1):
        monkeypatch.setenv("QC_BISECT", str(count))
        model = qc.build(qc.quantize(graph, data, recipe=recipe))
        assert model.verify(data[0]).holds, count


def test_bisection_counts_on_from_quantize_to_build(monkeypatch, tmp_path):
    graph = encoder()
    monkeypatch.setenv("QC_DUMP", str(tmp_path))
    monkeypatch.setenv("QC_BISECT", str(passes.quantize.optional + 1))
    qc.build(qc.quantize(graph, recipe="float32"))
    ran = [f.stem[3:] for f in sorted(tmp_path.glob("*.qir"))]
    left = [p.name for p in passes.build.passes if p.optional]
    assert len(left) == 2 and left[0] in ran[-4:] and left[1] not in ran


def test_printer_and_timer():
    out = io.StringIO()
    observers = (Timer(2, out), Printer("changed", out))

    def abs_of_neg(node, sweep):
        """|-x| => |x|."""
        hit = isinstance(node.op, Abs) and isinstance(node.inputs[0].op, Neg)
        return Abs()(node.inputs[0].inputs[0]) if hit else None

    Pipeline((rewrites("tidy", (abs_of_neg,)),))(small(), Context(), observers)
    text = out.getvalue()
    assert "|-x| => |x|." in text and "3 -> 2 nodes" in text and "-  %neg = neg(%x)" in text


def test_dumps_are_numbered(tmp_path):
    from qcompiler.text import load

    graph = cnn()
    Pipeline(passes.NORMALIZE)(graph, Context(), (Dumper(tmp_path),))
    names = sorted(f.name for f in tmp_path.glob("*.qir"))
    assert names == [
        "00_input.qir", "01_decompose.qir", "02_simplify.qir", "03_fold.qir", "04_simplify.qir",
    ]  # fmt: skip
    assert str(load(tmp_path / "00_input.qir", tmp_path / "constants")) == str(graph)


def test_a_second_run_replaces_the_dumps_of_the_first(tmp_path):
    Pipeline(passes.NORMALIZE)(cnn(), Context(), (Dumper(tmp_path),))
    (tmp_path / "notes.txt").write_text("mine")
    Pipeline((passes.simplify,))(encoder(), Context(), (Dumper(tmp_path),))
    names = sorted(f.name for f in tmp_path.glob("*.*"))
    assert names == ["00_input.qir", "01_simplify.qir", "notes.txt"]


def test_reproducer_leaves_a_command(tmp_path):
    with pytest.raises(VerifyError):
        Pipeline((wrong_type,))(small(), Context(), (Reproducer(tmp_path),))
    assert (tmp_path / "g.qir").exists()
    assert 'qcompiler opt g.qir -p "wrong-type"' in (tmp_path / "README").read_text()


def returns(result):
    return graph_pass("broken", Level.FLOAT)(lambda graph, ctx: result(graph))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda graph: None, "pass broken: expected it to return a graph, got NoneType"),
        (lambda graph: 1 / 0, "pass broken failed: ZeroDivisionError: division by zero"),
        (lambda graph: graph.none, "pass broken failed: AttributeError"),
        (lambda graph: replace(graph, outputs=()), "after broken: expected 1 results, .* got 0"),
        (lambda graph: replace(graph, inputs=(*graph.inputs, value(2, name="y"))), "got 2"),
        (lambda graph: small_of(4), r"expected %x to stay float32\[3\], got %x : float32\[4\]"),
    ],
)
def test_a_pass_that_breaks_is_named(result, message):
    with pytest.raises((PassError, VerifyError), match=message):
        Pipeline((returns(result),))(small())


def small_of(size: int) -> Graph:
    x = value(size)
    return named(Graph((x,), (Abs()(x),)))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ([1.0, 2.0], [1.0, NAN], "other values are NaN or infinite"),
        ([1.0, NAN], [1.0, 2.0], "other values are NaN or infinite"),
        ([INF, 2.0], [INF, 3.0], "error 1 of magnitude 2"),
        ([INF, 2.0], [-INF, 2.0], "1 of 1 values differ"),
        ([INF, NAN, 2.0], [INF, NAN, 2.0001], None),
        ([], [], None),
    ],
)
def test_numbers_are_compared_around_nan_and_inf(before, after, problem):
    found = apart(torch.tensor(before), torch.tensor(after))
    assert found is None if problem is None else problem in found
