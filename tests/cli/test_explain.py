"""compile --explain and explain: where the error of a model comes from."""

import os
import subprocess
import sys
from pathlib import Path

import qcompiler as qc


def test_a_model_says_where_its_error_comes_from(cli) -> None:
    done = cli("compile", "shop:net", "--calibration", "shop:items", "--explain",
               "--report", "r.html", "-o", "e.qcm")  # fmt: skip
    assert done.code == 0, done.err
    errors = qc.load("e.qcm").report.errors
    assert errors is not None and errors.entries
    told = cli("explain", "e.qcm")
    assert told.code == 0
    assert "made up of" in told.out and "residual" in told.out
    assert errors.ranked()[0].name in told.out
    with open("r.html") as page:
        assert "Where the error comes from" in page.read()


def test_a_node_says_what_is_known_of_it(cli) -> None:
    assert cli("compile", "shop:net", "--calibration", "shop:items", "--explain",
               "-o", "e.qcm").code == 0  # fmt: skip
    report = qc.load("e.qcm").report
    layer = report.layers[0]
    told = cli("explain", "e.qcm", layer.name)
    assert told.code == 0
    assert told.out.startswith(f"{layer.name}: {layer.op} {layer.detail}, {layer.precision}")
    wrong = cli("explain", "e.qcm", "nowhere")
    assert wrong.code == 1
    assert "has no layer, value or module 'nowhere'; it has " in wrong.err


def test_without_explain_it_is_said_how(made, cli) -> None:
    told = cli("explain", made / "m.qcm")
    assert told.code == 1
    assert "compile it with --explain" in told.err


def test_there_must_be_data_to_explain_with(cli) -> None:
    done = cli("compile", "shop:net", "--recipe", "int8-dynamic", "--explain", "-o", "d.qcm")
    assert done.code == 2
    assert "--explain compares the model with its float original on data" in done.err


def test_methods_of_the_command_line_reach_the_recipe(cli) -> None:
    done = cli("compile", "shop:net", "--calibration", "shop:items", "--rounding", "gptq",
               "--scaling", "equalize", "-o", "g.qcm")  # fmt: skip
    assert done.code == 0, done.err
    plain = cli("compile", "shop:net", "--calibration", "shop:items", "-o", "p.qcm")
    assert plain.code == 0
    hashes = [qc.load(f).manifest.hashes["graph"] for f in ("g.qcm", "p.qcm")]
    assert hashes[0] != hashes[1]
    none = cli("compile", "shop:net", "--recipe", "w8a16", "--rounding", "gptq", "-o", "w.qcm")
    assert none.code == 2 and "go by data" in none.err


def test_statistics_are_gathered_merged_and_used(cli) -> None:
    done = cli("calibrate", "shop:net", "--calibration", "shop:items", "-o", "s.safetensors")
    assert done.code == 0 and done.out.splitlines()[-1].startswith("s.safetensors: ")
    assert cli("compile", "shop:net", "--calibration", "s.safetensors", "-o", "s.qcm").code == 0
    assert cli("compile", "shop:net", "--calibration", "shop:items", "-o", "d.qcm").code == 0
    a, b = (qc.load(f).manifest.hashes for f in ("s.qcm", "d.qcm"))
    assert (a["graph"], a["calibration"]) == (b["graph"], b["calibration"])
    twice = cli("merge", "s.safetensors", "s.safetensors", "-o", "t.safetensors")
    assert twice.code == 1 and "is in both statistics" in twice.err
    assert cli("merge", "s.safetensors", "-o", "t.safetensors").code == 0


def test_misuse_is_told_before_the_work(cli) -> None:
    assert cli("calibrate", "shop:net", "--calibration", "shop:items", "-o", "s.bin").code == 2
    assert cli("calibrate", "shop:net", "--calibration", "shop:items",
               "-o", "s.safetensors").code == 0  # fmt: skip
    done = cli("compile", "shop:net", "--calibration", "s.safetensors", "--explain", "-o", "x.qcm")
    assert done.code == 2 and "no statistics" in done.err and "build" not in done.out


def test_explain_needs_no_torch(cli) -> None:
    assert cli("compile", "shop:net", "--calibration", "shop:items", "--explain",
               "-o", "e.qcm").code == 0  # fmt: skip
    code = """
import sys
sys.modules["torch"] = sys.modules["sympy"] = None
from qcompiler.cli import commands
from qcompiler.cli.exits import guarded
sys.exit(guarded(commands, ["explain", "e.qcm"]))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(qc.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "made up of" in done.stdout
