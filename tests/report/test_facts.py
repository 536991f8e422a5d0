"""Reports as data: what is counted, and JSON both ways without torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from qcompiler.report import Layer, Report, ReportError

CONV = Layer("stem", "conv2d", "3x3, 3 -> 8", "net.py:1", 3000, "int8", "", 400, 110)
SOFTMAX = Layer("mix", "softmax", "1x8", "net.py:2", 0, "float32", "softmax is [bold] exponential")
SCORES = Layer("scores", "matmul", "8x8", "net.py:3", 1000, "float32", "its operands differ")
REPORT = Report(
    "some-machine", "int8", (CONV, SOFTMAX, SCORES), 1, 2, 4000, 1000,
    {"logits": 17.25, "same": float("inf")}, {"float32 (torch)": 31.5},
    {"fma": 1000.0, "dp": 3000.0},
)  # fmt: skip


def test_shares_count_multiply_adds() -> None:
    assert REPORT.macs == 4000
    assert REPORT.integer_share == 0.75
    assert REPORT.floats == (SCORES, SOFTMAX)
    assert replace(REPORT, layers=(SOFTMAX,)).integer_share == 0.0


def test_json_gives_an_equal_report_back() -> None:
    text = REPORT.to_json()
    assert Report.from_json(text) == REPORT
    assert Report.from_json(text).to_json() == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_instructions_come_by_their_share_of_the_multiply_adds() -> None:
    assert "instructions     dp 75.0 %, fma 25.0 %" in str(REPORT)
    assert "instructions" not in str(replace(REPORT, instructions={}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b | {"format": 99}, "expected format 1, got 99"),
        (lambda b: b | {"layers": [{"name": "x"}]}, "missing .* 'op'"),
        (lambda b: b | {"surprise": 1}, "surprise"),
        (lambda b: {k: v for k, v in b.items() if k != "format"}, "format"),
        (lambda b: [b], "malformed"),
    ],
)
def test_another_text_is_refused(change, says: str) -> None:
    with pytest.raises(ReportError, match=says):
        Report.from_json(json.dumps(change(json.loads(REPORT.to_json()))))


def test_text_names_every_layer_and_reason_as_they_are() -> None:
    text = str(REPORT)
    assert "75.0 % of 4.0 k multiply-adds" in text
    assert "softmax is [bold] exponential" in text
    for fact in ("stem", "mix", "scores", "17.2 dB", "31.50 ms", "some-machine", "exact"):
        assert fact in text
    assert text == str(Report.from_json(REPORT.to_json()))
    assert "\x1b" not in text


def test_a_share_below_all_is_never_shown_as_all() -> None:
    nearly = replace(CONV, macs=10**6)
    rest = replace(SCORES, macs=1)
    assert "99.9 % of" in str(replace(REPORT, layers=(nearly, rest)))
    assert "100.0 % of" in str(replace(REPORT, layers=(nearly,)))


def test_reading_and_printing_needs_no_torch() -> None:
    code = (
        "import sys; from qcompiler.report import Report; "
        f"print(str(Report.from_json({REPORT.to_json()!r}))[:6], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["target", "False"]
