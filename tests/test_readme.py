"""The README's Python runs as written, and the texts it shows are what it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PASS_LINES, TARGET_LINES = 15, 40  # a pass or target of one's own fits in this many


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each Python block of the README prints, run in order in one namespace."""
    names: dict[str, object] = {}
    outputs = []
    with contextlib.chdir(tmp_path_factory.mktemp("readme")):
        for language, code in BLOCKS:
            if language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(code, names)
                outputs.append(out.getvalue())
    return outputs


def shape_of(text: str) -> list[str]:
    """The text without what a machine's float32 rounding decides: hashes, scales, comments."""
    lines = [line.split("  # ")[0].rstrip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith("  trees")]
    return [re.sub(r"#[0-9a-f]{12,16}|-?\d+\.\d+(e-?\d+)?|\b\d{2,}\b", "~", k) for k in kept]


def test_graphs_are_as_printed(printed):
    graphs = [text for language, text in BLOCKS if not language and text.startswith("graph @")]
    assert len(graphs) == 2
    for shown, output in zip(graphs, printed[1:3], strict=True):
        assert shape_of(shown) == shape_of(output)


def test_model_reports(printed):
    assert "int8" in printed[0] and "multiply-adds" in printed[0]


def test_examples_are_short(printed):
    code = [text for language, text in BLOCKS if language == "python"]
    (own_pass,) = [c for c in code if "rewrites(" in c]
    (own_target,) = [c for c in code if "replace(" in c]
    assert len(own_pass.splitlines()) <= PASS_LINES
    assert len(own_target.splitlines()) <= TARGET_LINES


def test_the_pass_fires():
    import torch

    import qcompiler as qc

    names: dict[str, object] = {"qc": qc}
    (code,) = [c for language, c in BLOCKS if language == "python" and "rewrites(" in c]
    names["graph"] = qc.trace(torch.nn.SiLU().eval(), (torch.randn(2, 3),))
    exec(code, names)
    assert "hardswish(" in str(names["graph"]) and "silu(" not in str(names["graph"])
