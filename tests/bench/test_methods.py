"""Methods side by side: each makes a row, and float32 the first."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qcompiler.bench import methods
from qcompiler.bench.methods import Row, Task, measured, sensible, table
from qcompiler.recipe import Rounding, Scaling, recipe_of


def items(seed: int) -> methods.Items:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(64, 16, generator=g),) for _ in range(8)]


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def largest(outputs: list[torch.Tensor], held: methods.Items) -> float:
    assert len(outputs) == len(held)
    return max(float(y.max()) for y in outputs)


TOY = Task(net, lambda: (items(0), items(1)), "largest", largest)


def test_a_row_says_how_accurate_a_method_is_and_what_it_took(monkeypatch) -> None:
    monkeypatch.setattr(methods, "TASKS", {"toy": TOY})
    plain = measured("toy", None, "x86-64-v3")
    assert plain.sqnr_db == float("inf")
    nearest = measured("toy", recipe_of("int8"), "x86-64-v3")
    assert 25 < nearest.sqnr_db < 60 and nearest.seconds > 0 and nearest.peak_mb > 50
    assert nearest.metric == pytest.approx(plain.metric, rel=0.1)
    better = measured("toy", replace(recipe_of("int8"), rounding="gptq"), "x86-64-v3")
    assert better.rounding == "gptq" and better.sqnr_db != nearest.sqnr_db
    made = table("toy", recipe_of("int8"), [plain, nearest, better])
    assert made.row_count == 3 and made.columns[3].header == "largest"


def test_only_methods_that_make_sense_are_tried() -> None:
    eight, four = recipe_of("int8"), recipe_of("w4a16")
    assert [s for s in Scaling if sensible(s, eight)] == [
        Scaling.NONE, Scaling.EQUALIZE, Scaling.SMOOTH,
    ]  # fmt: skip
    assert [s for s in Scaling if sensible(s, four)] == [
        Scaling.NONE, Scaling.EQUALIZE, Scaling.AWQ,
    ]  # fmt: skip
    assert len(Rounding) == 3 and Row("none", "gptq", 1.0, 2.0, 3.0, 4.0).peak_mb == 4.0


def test_the_command_takes_pretrained_models_only() -> None:
    from click.testing import CliRunner

    from qcompiler.cli.bench import bench

    done = CliRunner().invoke(bench, ["gemm768", "--methods"])
    assert done.exit_code == 2
    assert "--methods needs one of efficientnet_lite0, minilm, smollm2" in done.output
