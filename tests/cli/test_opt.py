"""The opt command: passes over texts, exactly as the pipeline runs them."""

import re
import shlex
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import click
import pytest

from qcompiler.cli import graphs
from qcompiler.graph import Level
from qcompiler.pipeline import Pass, declare


def test_opt_repeats_every_pass_of_the_pipeline_byte_for_byte(made, cli) -> None:
    dumps = sorted((made / "dump").glob("*.qir"))
    names = [d.stem.partition("_")[2] for d in dumps]
    assert names[0] == "input"
    assert [d.stem[:2] for d in dumps] == [f"{k:02}" for k in range(len(dumps))]
    assert {"calibrate", "integerize", "fuse", "pack"} <= set(names)
    for before, after, name in zip(dumps, dumps[1:], names[1:], strict=False):
        options = ["--calibration", made / "data.npz"] if name == "calibrate" else []
        assert cli("opt", before, "-p", name, *options, "-o", "out.qir").code == 0
        assert Path("out.qir").read_bytes() == after.read_bytes()


def test_opt_runs_several_passes_and_reads_what_it_wrote(made, cli) -> None:
    dumps = sorted((made / "dump").glob("*.qir"))
    names = [d.stem.partition("_")[2] for d in dumps]
    calibrate = names.index("calibrate")
    start = dumps[0]
    for some in (names[1:3], names[3:calibrate]):
        assert cli("opt", start, "-p", ", ".join(some), "-o", f"{some[-1]}.qir").code == 0
        start = Path(f"{some[-1]}.qir")
    assert start.read_bytes() == dumps[calibrate - 1].read_bytes()
    assert cli("opt", dumps[0], "-p", names[1]).out == dumps[1].read_text()


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("frobnicate", "there is no pass 'frobnicate'; known: decompose, simplify"),
        ("simplify{limit=3}", "pass simplify has no option 'limit'; it has no options"),
        ("simplify{3}", "expected option=value"),
        ("simplify{limit=open('x')}", "malformed node"),
        ("simplify{limit=", "expected name{option=value,...}"),
        ("", "there is no pass ''"),
    ],
)
def test_pass_lists_that_make_no_sense_are_wrong_usage(made, cli, passes, message) -> None:
    done = cli("opt", made / "dump" / "00_input.qir", "-p", passes)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_passes_at_a_wrong_level_are_refused(made, cli) -> None:
    done = cli("opt", made / "dump" / "00_input.qir", "-p", "integerize")
    assert (done.code, done.out) == (1, "")
    told = "integerize needs QDQ, but the graph is at FLOAT; insert-qdq gives QDQ: run it before"
    assert done.err == f"error: {told}\n"
    done = cli("opt", made / "dump" / "00_input.qir", "-p", "assign-precision,integerize")
    assert "but assign-precision leaves PLANNED; insert-qdq gives QDQ" in done.err
    fused = max((made / "dump").glob("*.qir"))
    done = cli("opt", fused, "-p", "decompose")
    assert done.code == 1
    assert "the graph is at FUSED; take the text of an earlier stage, as QC_DUMP=dir" in done.err


def test_texts_that_are_no_graph_are_refused(made, cli) -> None:
    Path("g.qir").write_text("graph @float {\n  %x = frob() : float32[1]\n}\n")
    done = cli("opt", "g.qir", "-p", "simplify")
    assert done.code == 1
    assert done.err.startswith("error: g.qir: line 2: unknown op 'frob'")
    Path("net.py").write_text("import torch\n")
    done = cli("opt", "net.py", "-p", "simplify")
    assert done.err.startswith("error: net.py: line 1: expected a node")
    Path("noise.qir").write_bytes(bytes(range(256)))
    for done in (cli("opt", "noise.qir", "-p", "simplify"), cli("inspect", "noise.qir")):
        assert done.err == "error: noise.qir: expected the text of a graph (.qir), got other data\n"
    done = cli("opt", made / "m.qcm", "-p", "simplify")
    assert done.code == 1
    assert f"{made / 'm.qcm'} is a program" in done.err and "qcompiler inspect" in done.err


def test_constants_that_are_missing_or_damaged_are_named(made, cli) -> None:
    text = (made / "dump" / "00_input.qir").read_text()
    Path("g.qir").write_text(text)
    done = cli("opt", "g.qir", "-p", "simplify")
    assert done.code == 1
    assert re.match(r"error: g.qir: line 3: constant \w+: no file g.constants/\w+.safet", done.err)
    shutil.copytree(made / "dump" / "constants", "constants")
    assert cli("opt", "g.qir", "-p", "simplify").code == 0
    for file in Path("constants").iterdir():
        file.write_bytes(b"noise")
    done = cli("opt", "g.qir", "-p", "simplify")
    assert done.code == 1
    assert re.match(r"error: g.qir: line 3: .*: constants/\w+.safetensors is damaged", done.err)
    calibrated = next((made / "dump").glob("*_calibrate.qir"))
    Path("h.qir").write_text(calibrated.read_text())
    shutil.rmtree("constants")
    shutil.copytree(made / "dump" / "constants", "constants")
    for file in Path("constants").glob("*.*.safetensors"):
        file.unlink()
    assert "h.qir: line 2: statistics " in cli("opt", "h.qir", "-p", "assign-precision").err


def test_calibrate_without_data_is_wrong_usage(made, cli) -> None:
    done = cli("opt", made / "dump" / "00_input.qir", "-p", "calibrate")
    assert done.code == 2
    assert "needs --calibration DATA" in " ".join(done.err.split())
    options = ("--recipe", "int8-dynamic")
    assert cli("opt", made / "dump" / "00_input.qir", "-p", "calibrate", *options).code == 0


class Kind(Enum):
    SMALL = "small"


@declare("probe", Level.FLOAT)
@dataclass(frozen=True)
class Probe(Pass):
    count: int = 1
    share: float = 0.5
    kind: Kind = Kind.SMALL
    names: tuple[str, ...] = ()


def test_options_are_literals(monkeypatch) -> None:
    from qcompiler import passes

    monkeypatch.setattr(passes, "by_name", lambda name: Probe())
    one = Probe(count=3, share=2.0, names=("a,b", "c{d}"))
    assert list(graphs.parsed_passes(f"probe, {one}")) == [Probe(), one]
    assert list(graphs.parsed_passes("probe{share=1,kind='small'}")) == [Probe(share=1.0)]
    for wrong in ("count='3'", "count=True", "kind='huge'", "count=3.5"):
        with pytest.raises(click.BadParameter):
            list(graphs.parsed_passes(f"probe{{{wrong}}}"))


def test_a_failure_writes_the_command_that_repeats_it(made, cli, monkeypatch) -> None:
    monkeypatch.setenv("QC_REPRO", "repro")
    data = made / "data.npz"
    arguments = ["compile", "shop:net", "--calibration", data, "-o", "m.qcm"]
    from qcompiler import passes

    def fails(*_: object) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr(type(passes.by_name("choose-ranges")), "run", fails)
    assert cli(*arguments).err == "error: on purpose\n"
    monkeypatch.delenv("QC_REPRO")
    command = Path("repro/README").read_text().splitlines()[-1].strip()
    monkeypatch.chdir("repro")
    again = cli(*shlex.split(command)[1:])
    assert (again.code, again.err) == (1, "error: on purpose\n")


def test_a_program_that_cannot_be_linked_leaves_its_graph_and_command(
    made, cli, monkeypatch
) -> None:
    monkeypatch.setenv("QC_REPRO", "repro")
    monkeypatch.setenv("QC_LINKER", "false")
    failed = cli("compile", "shop:net", "--calibration", made / "data.npz", "-o", "m.qcm")
    assert failed.code == 1 and "false -shared -o" in failed.err
    monkeypatch.delenv("QC_REPRO")
    command = Path("repro/README").read_text().splitlines()[-1].strip()
    monkeypatch.chdir("repro")
    assert cli(*shlex.split(command)[1:]).code == 1
    monkeypatch.delenv("QC_LINKER")
    assert cli(*shlex.split(command)[1:]).code == 0
    assert cli("verify", "m.qcm").code == 0


def test_a_float_text_compiles_as_its_source_does(made, cli) -> None:
    graph, data = made / "dump" / "00_input.qir", made / "data.npz"
    assert cli("compile", graph, "--calibration", data, "-o", "again.qcm").code == 0
    programs = [cli("inspect", path).out for path in (made / "m.qcm", "again.qcm")]
    texts = [out[out.index("graph @fused") :] for out in programs]
    assert texts[0] == texts[1]
    assert "needs --calibration" in " ".join(cli("compile", graph, "-o", "m.qcm").err.split())
    fused = max((made / "dump").glob("*.qir"))
    refused = cli("compile", fused, "-o", "m.qcm")
    assert refused.code == 1
    assert "expected a graph at FLOAT, got FUSED" in refused.err
