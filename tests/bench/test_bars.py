"""Verdicts on bars, on made-up times and SQNRs."""

from dataclasses import replace

import pytest

from qcompiler.bench.bars import (
    BARS,
    SCALINGS,
    SECONDS,
    Bar,
    Scaling,
    in_time,
    scaled,
    verdict,
    verdicts,
)
from qcompiler.bench.row import OURS, Row, precision_of
from qcompiler.bench.works import ALL
from qcompiler.peers import Precision
from qcompiler.timing import Times

INT8_BAR = Bar("resnet50", Precision.INT8, 0.8)


def row(name: str, ms: float | None, sqnr: float | None = None, owner: str = OURS, **more) -> Row:
    times = None if ms is None else Times(ms, ms, ms, 10, ms)
    precision = more.pop("precision", precision_of(name))
    return Row(f"{name} ({owner})", owner, name, precision, times=times, sqnr=sqnr, **more)


def peer(ms: float | None, sqnr: float | None, precision: Precision = Precision.INT8) -> Row:
    return row(f"at {ms}", ms, sqnr, "onnxruntime", precision=precision)


def test_the_fastest_that_is_as_right_as_the_fast_peers_counts() -> None:
    # The peer of 30 dB is 5 % slower than the fastest and sets what is needed; that of 60 is not.
    peers = [peer(10.0, 20.0), peer(10.5, 30.0), peer(10.6, 60.0)]
    ours = [row("int8-fast", 5.0, 29.4), row("int8", 7.9, 29.5), row("int8-dynamic", 9.0, 50.0)]
    found = verdict(INT8_BAR, [*ours, *peers])
    assert (found.met, found.ours, found.ratio) == (True, "int8 (qcompiler)", 0.79)
    assert (found.needed, found.peer_value) == (29.5, 10.0)
    slower = [row("int8", 8.1, 29.5), *peers]
    assert verdict(INT8_BAR, slower).met is False


def test_nobody_right_enough_is_not_met_and_says_who_came_closest() -> None:
    found = verdict(INT8_BAR, [row("int8", 1.0, 20.0), row("w4a8", 1.0, 9.0), peer(10.0, 30.0)])
    assert found.met is False
    assert found.reason == "none of ours has 29.5 dB; int8 (qcompiler) has the highest, 20.0 dB"


def test_int8_itself_is_asked_for_no_sqnr() -> None:
    bar = Bar("resnet50", Precision.INT8, 1.0, recipe="int8")
    rows = [row("int8", 10.0, 1.0), row("int8-fast", 1.0, 1.0), peer(10.0, 30.0)]
    found = verdict(bar, rows)
    assert (found.met, found.ours_value, found.needed) == (True, 10.0, None)
    refused = [row("int8", None, failure="no"), peer(10.0, 30.0)]
    assert verdict(bar, refused).met is None


def test_float32_is_compared_with_the_best_float32() -> None:
    bar = Bar("gemm768", Precision.FLOAT32, 1.05, recipe="float32")
    fast_int8 = peer(1.0, 30.0)
    rows = [row("float32", 10.5), peer(10.0, None, Precision.FLOAT32), fast_int8]
    assert verdict(bar, rows).met is True
    assert verdict(bar, [replace(rows[0], times=Times(11, 11, 11, 2, 11)), *rows[1:]]).met is False


def test_a_group_without_measured_peers_gives_no_verdict() -> None:
    failed = replace(peer(None, None), failure="out of memory")
    found = verdict(INT8_BAR, [row("int8", 1.0, 20.0), failed])
    assert (found.met, found.reason) == (None, "no peer was measured")


def test_an_undefined_sqnr_of_a_peer_asks_for_nothing() -> None:
    rows = [row("int8", 1.0, 20.0), peer(10.0, float("nan")), peer(10.1, 12.0)]
    assert verdict(INT8_BAR, rows).needed == 11.5


def test_verdicts_are_on_the_groups_that_were_asked_for() -> None:
    rows = [row("int8", 1.0, 40.0), peer(10.0, 30.0)]
    assert [v.bar for v in verdicts("gemv", rows)] == [
        "int8 <= 0.9 x the best int8", "int8 <= 1 x the best int8"
    ]  # fmt: skip
    four = [*rows, peer(10.0, 20.0, Precision.FOUR_BIT)]
    assert "4 bit <= 0.5 x the best 4 bit" in [v.bar for v in verdicts("gemv", four)]


def test_scaling_compares_throughput_of_one_program_with_itself() -> None:
    bar = Scaling("resnet50", 1.8, threads=2)
    two = row("int8", 50.0, 15.0, threads=2)
    one = row("int8", 95.0, 15.0, threads=1, scaling=True)
    (found,) = scaled(bar, [two, one, row("int8-fast", 1.0)])
    assert found.met is True
    assert found.ratio == pytest.approx(1.9)
    assert scaled(bar, [replace(two, threads=3), one]) == []
    batch = Scaling("resnet50", 1.0, batch=8)
    eight = row("int8", 410.0, 15.0, batch=8)
    single = row("int8", 50.0, None, batch=1, scaling=True)
    (found,) = scaled(batch, [eight, single])
    assert found.met is False
    assert found.ratio == pytest.approx(400 / 410)


def test_scaling_programs_are_no_candidates_of_other_bars() -> None:
    rows = [row("int8", 9.0, 30.0, threads=2), peer(10.0, 30.0)]
    rows.append(row("int8", 1.0, 30.0, scaling=True))
    assert {v.ours_value for v in verdicts("vit_b16", rows)} == {9.0}


def test_compilation_has_a_limit() -> None:
    seconds = {"trace": 50.0, "quantize": 30.0, "build": 29.0}
    (found,) = in_time("resnet50", [row("int8", 1.0, seconds=seconds)])
    assert (found.met, found.ours_value) == (True, 59.0)
    assert in_time("gemv", [row("int8", 1.0, seconds=seconds)]) == []
    assert in_time("resnet50", [row("int8", None, failure="refused")]) == []


def test_every_bar_is_about_a_work_there_is() -> None:
    names = {w.name for w in ALL}
    assert {b.work for b in (*BARS, *SCALINGS, *SECONDS)} == names
    for name in names:
        assert len([b for b in BARS if b.work == name]) >= 3
