"""A task measured: our recipes, peers that work, refuse and break, kernels one by one."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from qcompiler import targets
from qcompiler.bench import measure, table
from qcompiler.bench.measure import Plan, measured, quality_of, wanted_recipes
from qcompiler.bench.per_op import per_op
from qcompiler.bench.session import Done, Results, plain
from qcompiler.bench.task import Task
from qcompiler.peers import Family, Job, Mode, Precision, Program, Skipped
from qcompiler.runtime.clock import kernel_times

NATIVE = targets.get("x86-64-v3")
pytestmark = pytest.mark.skipif(
    not targets.host_features().issuperset(NATIVE.features), reason="runs x86-64-v3 programs"
)


def silent(what: str, done: int, total: int) -> None:
    pass


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def task() -> Task:
    items = [torch.randn(1, 3, 8, 8) for _ in range(9)]
    return Task("net", net(), (items[8],), lambda: items[:8], Family.CONVOLUTION)


def mode(name: str, prepare, **options) -> Mode:
    return Mode("torch", name, "made up", Precision.INT8, prepare, **options)


def twice(job: Job) -> Program:
    """Right but for the last output element."""

    def call() -> torch.Tensor:
        with torch.no_grad():
            return job.module(*job.inputs)

    def values(found: torch.Tensor) -> list:
        wrong = found.clone()
        wrong[0, -1] += 0.1
        return [wrong.numpy()]

    return Program(call, values)


def refused(job: Job) -> Program:
    raise Skipped("no C++ compiler; install one")


def broken(job: Job) -> Program:
    def call() -> None:
        raise RuntimeError("first line\nsecond line")

    return Program(call, lambda found: found)


def misshapen(job: Job) -> Program:
    return Program(lambda: None, lambda found: [])


MODES = (mode("right", twice), mode("refused", refused), mode("broken", broken),
         mode("misshapen", misshapen),
         mode("for transformers", refused, families=frozenset({Family.TRANSFORMER})))  # fmt: skip


@pytest.fixture(scope="module")
def found(task):
    return measured(task, Plan(NATIVE, None, MODES, rounds=2), silent)


def test_every_program_has_times_or_a_reason(found) -> None:
    rows = {r.program: r for r in found.rows}
    assert list(rows) == [
        "float32 (PyTorch)", "float32 (x86-64-v3)", "int8 (x86-64-v3)", "int8-fast (x86-64-v3)",
        "auto (x86-64-v3)", "right (torch)", "refused (torch)", "broken (torch)",
        "misshapen (torch)",
    ]  # fmt: skip
    assert all((r.times is None) == bool(r.failure) for r in rows.values())
    assert rows["refused (torch)"].failure == "no C++ compiler; install one"
    assert rows["broken (torch)"].failure == "RuntimeError: first line"
    assert rows["misshapen (torch)"].failure == "expected 1 outputs, as torch gives, got 0"
    assert rows["float32 (x86-64-v3)"].sqnr > 60.0
    assert 15.0 < rows["int8 (x86-64-v3)"].sqnr < 60.0
    assert rows["right (torch)"].sqnr is not None
    assert set(rows["int8 (x86-64-v3)"].seconds) == {"trace", "quantize", "build"}


def test_recipes_that_are_asked_for_must_work(task, monkeypatch) -> None:
    def refuses(*_: object) -> None:
        raise ValueError("node %x: expected something else")

    plan = Plan(NATIVE, wanted_recipes("int8"), rounds=2)
    assert [r.name for r in plan.recipes or ()] == ["float32", "int8"]
    monkeypatch.setattr(measure, "built", refuses)
    with pytest.raises(ValueError, match="expected something else"):
        measured(task, plan, silent)
    listed = measured(task, replace(plan, recipes=None), silent)
    failures = [r.failure for r in listed.rows if r.ours]
    assert failures == ["node %x: expected something else"] * 4


def test_results_of_unjudged_data_are_not_judged(task) -> None:
    plan = Plan(NATIVE, wanted_recipes("int8"), rounds=2)
    rows = measured(replace(task, judged=False), plan, silent).rows
    assert [r.sqnr is None for r in rows] == [True, False, True]


def test_tables_show_every_row_and_failure(found, capsys) -> None:
    table.console().print(table.times_table("net", found.rows))
    table.console().print(table.seconds_table("net", found.rows))
    shown = capsys.readouterr().out
    assert all((row.program in shown) != bool(row.failure) for row in found.rows)
    lines = table.remarks([*found.rows[:1], replace(found.rows[1], note="it is odd")])
    assert lines == "* it is odd"
    assert "broken (torch): failed: RuntimeError: first line" in table.remarks(found.rows)
    order = [r.program for r in table.ordered(found.rows)]
    assert set(order[:2]) == {"float32 (PyTorch)", "float32 (x86-64-v3)"}
    failed = {r.program for r in found.rows if r.failure}
    assert set(order[-len(failed) :]) == failed


def test_kernels_are_the_nodes_of_the_graph(found, task, capsys) -> None:
    model = found.built["int8"].model
    inputs = found.built["int8"].inputs
    ops = per_op(model, inputs, (10.0, None), rounds=3)
    assert sum(o.share for o in ops) == pytest.approx(1.0)
    assert [o.ms for o in ops] == sorted((o.ms for o in ops), reverse=True)
    assert sum(o.macs for o in ops) == sum(layer.macs for layer in model.report.layers)
    convolution = next(o for o in ops if o.kind.startswith("int_conv2d"))
    assert (convolution.macs, convolution.integer) == (3 * 9 * 8 * 64, True)
    assert convolution.detail == "3x3, 3 -> 8"
    assert convolution.peak is None
    floats = found.built["float32"]
    first = per_op(floats.model, floats.inputs, (10.0, None), rounds=3)
    assert all(o.peak == pytest.approx(o.gmacs / 10.0) for o in first if o.macs)
    table.console().print(table.ops_table("int8", ops, shown=2))
    shown = capsys.readouterr().out
    assert f"{len(ops) - 2} more" in shown


def test_kernel_times_leave_the_model_as_it_was(found, task) -> None:
    built = found.built["int8"]
    before = built.model(*task.args)
    times = kernel_times(built.model, built.inputs, 2)
    assert len(times) == 2
    assert all(ms > 0.0 for row in times for ms in row)
    assert torch.equal(built.model(*task.args), before)


def test_quality_is_that_of_the_worst_output() -> None:
    a, b = torch.ones(4).numpy(), torch.ones(2).numpy()
    assert quality_of([a, b], [a, 1.1 * b]) == pytest.approx(20.0, abs=1e-4)
    ids = torch.ones(2, dtype=torch.int64).numpy()
    assert quality_of([ids], [ids]) == float("inf")
    with pytest.raises(ValueError, match="expected 2 outputs"):
        quality_of([a, b], [a])


def test_json_has_no_infinite_numbers(found) -> None:
    rows = tuple(replace(r, sqnr=float("inf")) for r in found.rows)
    made = Results((Done("net", rows, ()),)).as_json("net", Plan(NATIVE, None))
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text)["works"][0]["rows"][0]["sqnr"] == "inf"
    assert json.loads(text)["works"][0]["rows"][0]["precision"] == "float32"
    assert plain((1.5, [float("nan")])) == [1.5, ["nan"]]


@pytest.mark.parametrize("batch", [2])
def test_a_larger_batch_is_measured_beside_batch_1(task, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    large = replace(task, args=(x,), calibration=lambda: [x])
    plan = Plan(NATIVE, wanted_recipes("int8"), rounds=2, batch=batch)
    rows = {r.program: r for r in measured(large, plan, silent, lambda: task).rows}
    single = rows["int8 (x86-64-v3), batch 1"]
    assert (single.batch, single.scaling, single.sqnr) == (1, True, None)
    assert rows["int8 (x86-64-v3)"].batch == batch
