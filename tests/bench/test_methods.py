"""Methods side by side: each makes a row, and float32 the first."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qcompiler.bench import methods
from qcompiler.bench.methods import Task, measured, of_peer, sensible, table
from qcompiler.peers import Job, Mode, Precision, Program
from qcompiler.peers.mode import Inputs
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
    plain = measured("toy", recipe_of("float32"), "x86-64-v3")
    assert plain.sqnr_db > 100 and plain.ms > 0 and plain.method == "float32"
    nearest = measured("toy", recipe_of("int8"), "x86-64-v3")
    assert 25 < nearest.sqnr_db < 60 and nearest.seconds > 0 and nearest.peak_mb > 50
    assert nearest.metric == pytest.approx(plain.metric, rel=0.1)
    better = measured("toy", replace(recipe_of("int8"), rounding="gptq"), "x86-64-v3")
    assert better.method == "none + gptq" and better.sqnr_db != nearest.sqnr_db
    made = table("toy", recipe_of("int8"), [plain, nearest, better])
    assert made.row_count == 3 and made.columns[3].header == "largest" and made.caption is None


def test_a_peer_quantizes_with_the_same_data(monkeypatch) -> None:
    """The peer here is PyTorch itself: its programs give what the module gives."""

    def prepare(job: Job) -> Program:
        assert len(job.calibration) == 8 and job.threads == 1

        def on(inputs: Inputs) -> Program:
            return Program(lambda: job.module(*inputs), lambda y: [y.detach().numpy()], on)

        return on(job.inputs)

    def fail(job: Job) -> Program:
        raise RuntimeError("no such op\nand more")

    modes = tuple(
        Mode("toy", name, "", Precision.INT8, how, saturates=name == "good")
        for name, how in (("good", prepare), ("bad", fail))
    )  # fmt: skip
    monkeypatch.setattr(methods, "TASKS", {"toy": TOY})
    monkeypatch.setattr(methods, "methods", lambda peer: modes)
    monkeypatch.setattr("qcompiler.peers.exported.exported", lambda job: None)
    monkeypatch.setattr("qcompiler.peers.mode.features", lambda: frozenset())
    good, bad = (of_peer("toy", "torch", m.name) for m in modes)
    assert good.method == "good *" and good.sqnr_db == float("inf") and good.ms > 0
    assert bad.error == "no such op"
    made = table("toy", recipe_of("int8"), [good, bad])
    assert made.row_count == 2 and "saturate" in str(made.caption)


def test_peers_without_methods_have_none() -> None:
    assert methods.methods("torch") == ()
    with pytest.raises(ValueError, match="no peer"):
        methods.methods("tensorrt")


def test_only_methods_that_make_sense_are_tried() -> None:
    eight, four = recipe_of("int8"), recipe_of("w4a16")
    assert [s for s in Scaling if sensible(s, eight)] == [
        Scaling.NONE, Scaling.EQUALIZE, Scaling.SMOOTH,
    ]  # fmt: skip
    assert [s for s in Scaling if sensible(s, four)] == [
        Scaling.NONE, Scaling.EQUALIZE, Scaling.AWQ,
    ]  # fmt: skip
    assert len(Rounding) == 3


def test_the_command_takes_pretrained_models_only() -> None:
    from click.testing import CliRunner

    from qcompiler.cli.bench import bench

    done = CliRunner().invoke(bench, ["gemm768", "--methods"])
    assert done.exit_code == 2
    assert "--methods needs one of efficientnet_lite0, minilm, lee50, smollm2" in done.output
