"""Hand-written texts: a graph, the passes to run on it, and what must come out, errors included.

Each case of tests/filecheck/*.qir (cases are split by `// -----`) starts with `// RUN: pass,pass`
and holds `// CHECK` lines, as LLVM's FileCheck reads them. A case whose RUN line ends in `!` must
fail, and its checks are for the message.
"""

import re
from pathlib import Path

import pytest
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from nets import ToyTarget

from qcompiler import passes
from qcompiler.context import Context
from qcompiler.parse import parse
from qcompiler.pipeline import Pipeline

FOLDER = Path(__file__).parent / "filecheck"
CASES = [
    pytest.param(case.strip() + "\n", id=f"{file.stem}-{number}")
    for file in sorted(FOLDER.glob("*.qir"))
    for number, case in enumerate(file.read_text().split("// -----"))
]


def output(case: str) -> str:
    """The text the passes make of the case's graph, or the message of their failure."""
    run = re.match(r"// RUN: ([\w,-]+)(!?)\n", case)
    assert run, "a case starts with `// RUN: pass,pass`"
    try:
        graph = parse(case)
        chosen = tuple(passes.by_name(name) for name in run[1].split(",") if name != "none")
        text = str(Pipeline(chosen)(graph, Context(ToyTarget())))
    except ValueError as e:
        assert run[2], f"the passes failed: {e}"
        return f"error: {e}\n"
    assert not run[2], "the passes should have failed"
    return text


@pytest.mark.parametrize("case", CASES)
def test_filecheck(case, tmp_path):
    assert "CHECK" in case
    (tmp_path / "checks").write_text(case)
    (tmp_path / "output").write_text(output(case))
    files = [str(tmp_path / "checks"), "--input-file", str(tmp_path / "output")]
    assert Matcher.from_opts(parse_argv_options(["filecheck", *files])).run() == 0


def test_checks_can_fail(tmp_path, capsys):
    case = CASES[0].values[0].replace("CHECK: ", "CHECK: nowhere ", 1)
    (tmp_path / "checks").write_text(case)
    (tmp_path / "output").write_text(output(case))
    files = [str(tmp_path / "checks"), "--input-file", str(tmp_path / "output")]
    assert Matcher.from_opts(parse_argv_options(["filecheck", *files])).run() != 0
