"""What the commands do: files written, texts printed, programs measured."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import qcompiler as qc
from qcompiler import targets
from qcompiler.cli import exits
from qcompiler.cli.build import running
from qcompiler.cli.progress import _Lines
from qcompiler.cli.sources import Samples
from qcompiler.timing import in_turns


def test_compile_writes_a_model_and_a_report(made) -> None:
    model = qc.load(made / "m.qcm")
    assert model.manifest.recipe == "int8"
    assert len(model.manifest.hashes["calibration"]) == 64
    lines = (made / "stdout").read_text().splitlines()
    assert lines[-1].startswith("m.qcm: int8 for x86-64-v3, ")
    assert lines[-1].endswith("100% of the multiply-adds in integers")
    assert [line for line in lines if line.startswith("calibrate")][-1] == "calibrate 6/6"
    assert (made / "stderr").read_text() == ""
    assert "<html" in (made / "report.html").read_text()


def test_run_is_calling_the_model(made, cli) -> None:
    assert cli("run", made / "m.qcm", made / "x.npz", "-o", "y.npz").code == 0
    x = np.load(made / "x.npz")["input"]
    (name,) = (s.name for s in qc.load(made / "m.qcm").manifest.main.outputs)
    with np.load("y.npz") as found:
        assert found.files == [name]
        assert np.array_equal(found[name], qc.load(made / "m.qcm")(x))


def test_arrays_may_be_given_by_position(made, cli) -> None:
    np.savez("named.npz", input=np.load(made / "x.npz")["input"])
    np.savez("unnamed.npz", np.load(made / "x.npz")["input"])
    for source in ("named", "unnamed"):
        assert cli("run", made / "m.qcm", f"{source}.npz", "-o", f"y_{source}.npz").code == 0
    assert Path("y_named.npz").read_bytes() == Path("y_unnamed.npz").read_bytes()


def test_several_outputs_and_a_symbolic_dimension(cli) -> None:
    assert cli("compile", "shop:sums", "--recipe", "float32", "-o", "s.qcm").code == 0
    x, y = np.full((5, 3), 2, np.float32), np.ones((5, 3), np.float32)
    np.savez("in.npz", x=x, y=y)
    assert cli("run", "s.qcm", "in.npz", "-o", "out.npz").code == 0
    with np.load("out.npz") as found:
        assert [found[k].tolist() for k in found.files] == [v.tolist() for v in (x + y, x, x + y)]
    assert "n in 1..9" in cli("inspect", "s.qcm").out


def test_verify_says_whether_it_holds(made, cli) -> None:
    for arguments in ((), (made / "x.npz",), ("--seed", 3)):
        done = cli("verify", made / "m.qcm", *arguments)
        assert (done.code, done.err) == (0, "")
        assert done.out.endswith("verified\n")
        assert "0 within 1e-4" in done.out


def test_verify_fails_where_the_program_is_wrong(made, cli) -> None:
    model = qc.load(made / "m.qcm")
    # The text now says other zero points than those the program was built with.
    text = model.text.replace("zero_point=", "zero_point=1")
    members = {**model.bundle.members, "graph.qir": text.encode()}
    type(model.bundle)(model.manifest, members, model.bundle.tensors).save("wrong.qcm")
    done = cli("verify", "wrong.qcm")
    assert done.code == 1
    assert "NOT verified" in done.err
    assert "differ, expected none" in done.err


def test_inspect_prints_facts_and_the_graph(made, cli) -> None:
    done = cli("inspect", made / "m.qcm")
    model = qc.load(made / "m.qcm")
    assert done.code == 0
    assert done.out.endswith(model.text)
    assert "// recipe   int8\n" in done.out
    assert "// input    input: float32[1,3,4,4]\n" in done.out
    assert str(qc.parse(done.out, qc.constants_of(model.graph))) == model.text
    first = made / "dump" / "00_input.qir"
    assert cli("inspect", first).out == first.read_text()


def test_targets_are_listed(cli) -> None:
    done = cli("targets")
    assert done.code == 0
    assert "x86-64-v3" in done.out and "x86-64-avx512vnni" in done.out
    assert "native is" in done.out


def test_the_table_of_targets_has_no_room_for_a_loaders_message(monkeypatch) -> None:
    found = "it has no cuda device (libcuda.so.1: cannot open shared object file)"
    monkeypatch.setattr("qcompiler.runtime.device.lacking", lambda kind, architecture: found)
    target = targets.get("cuda-sm80")
    assert running(target, frozenset(target.features)) == "no: it has no cuda device"


def test_bench_measures_all_in_turns(made, cli) -> None:
    done = cli("bench", "shop:net", "--rounds", 2, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    here = targets.native().name
    names = ["float32 (PyTorch)", f"float32 ({here})", f"int8 ({here})"]
    assert list(found["times_ms"]) == names
    assert all(t["low"] <= t["median"] <= t["high"] for t in found["times_ms"].values())
    assert found["threads"] == 1
    done = cli("bench", made / "m.qcm", "--rounds", 2)
    assert done.code == 0
    assert "int8 (x86-64-v3)" in done.out


def test_turns_are_fair() -> None:
    seen: list[str] = []
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = in_turns(calls, 5)
    assert seen == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 5
    assert {t.count for t in times.values()} == {5}


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from qcompiler.cli import commands
commands.main(["--help"], standalone_mode=False)
heavy = {"torch", "tvm", "numpy", "scipy", "sympy", "rich", "networkx", "jinja2"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("compile", "run", "verify", "inspect", "opt", "bench", "targets", "demo"):
        assert f"\n  {name} " in done.stdout


def test_samples_are_cut_along_the_first_axis() -> None:
    a, b = np.arange(6).reshape(3, 2), np.arange(3)
    assert len(Samples({"a": a, "b": b})) == 3
    assert [s["a"].tolist() for s in Samples({"a": a, "b": b})] == a.tolist()
    assert [type(s) for s in Samples({"arr_0": a, "arr_1": b})] == [tuple] * 3
    for wrong in ({}, {"a": np.float32(1)}):
        with pytest.raises(exits.Refused):
            Samples({k: np.asarray(v) for k, v in wrong.items()})


def test_lines_of_progress_are_few(capsys, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    show = _Lines(sys.stdout)
    for done in range(1, 101):
        now[0] += 0.1
        show("calibrate", done, 100)
    show("build", 0, 0)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "calibrate 1/100"
    assert shown[-2:] == ["calibrate 100/100", "build"]
    assert 4 <= len(shown) <= 8


def test_exported_programs_are_a_source(cli) -> None:
    x = torch.randn(2, 3)
    torch.export.save(torch.export.export(torch.nn.Tanh().eval(), (x,)), "t.pt2")
    assert cli("compile", "t.pt2", "--recipe", "float32", "-o", "t.qcm").code == 0
    model = qc.load("t.qcm")
    assert torch.equal(model(x), qc.interpret(model.graph, x))
