"""compile --tune, --database and --max-drop; front."""

from pathlib import Path

import qcompiler as qc
from qcompiler.targets import database


def test_compile_tunes_and_uses_a_database(cli) -> None:
    options = ("--recipe", "int8", "--calibration", "shop:items", "--database", "k.json")
    made = cli("compile", "shop:net", *options, "--tune", "-o", "a.qcm")
    assert made.code == 0 and "tune" in made.out
    times = database.read("k.json")["x86-64-v3"]
    assert any(product.startswith("conv 1x4x4x3 -> 8") for product in times)
    assert cli("compile", "shop:net", *options, "-o", "b.qcm").code == 0
    a, b = (qc.load(f).manifest for f in ("a.qcm", "b.qcm"))
    assert a.hashes == b.hashes and "kernel database" in a.hashes
    assert "kernel database" in cli("inspect", "a.qcm").out
    lost = cli("compile", "shop:net", *options[:-1], "none.json", "-o", "c.qcm")
    assert lost.code == 1 and "none.json: No such file" in lost.err
    Path("k.json").write_text("{}")
    bad = cli("compile", "shop:net", *options, "-o", "c.qcm")
    assert bad.code == 1 and "k.json: expected a kernel database" in bad.err
    assert not Path("c.qcm").exists()


def test_auto_is_a_recipe_and_may_be_told_what_to_lose(cli) -> None:
    data = ("--calibration", "shop:items")
    made = cli("compile", "shop:net", "--recipe", "auto", *data, "--max-drop", "3", "-o", "a.qcm")
    assert made.code == 0 and "auto for x86-64-v3" in made.out
    lost = cli("compile", "shop:net", *data, "--max-drop", "3", "-o", "b.qcm")
    assert lost.code == 2 and "recipe 'int8' has nothing to choose; use auto" in lost.err
    bad = cli("compile", "shop:net", "--recipe", "auto", *data, "--max-drop", "nan", "-o", "b.qcm")
    assert bad.code == 2 and "max_drop: expected decibels from -100 to 100" in bad.err


def test_the_front_is_shown_and_kept(cli) -> None:
    done = cli("front", "shop:net", "--calibration", "shop:items", "-o", "front.json")
    assert done.code == 0 and "--max-drop" in done.out and "SQNR dB" in done.out
    assert '"points"' in Path("front.json").read_text()
    again = ("front", "shop:net", "--calibration", "shop:items", "-o", "front.json")
    assert cli(*again, "--plot", "front.svg").code == 0
    assert Path("front.svg").read_text().startswith("<svg")
    made = ("compile", "shop:net", "--calibration", "shop:items", "-o", "a.qcm", "--front")
    assert cli(*made, "front.json", "--report", "r.html").code == 0
    assert "What accuracy costs" in Path("r.html").read_text()
    assert cli(*made, "front.json").code == 2
    Path("other.json").write_text("{}")
    other = cli(*made, "other.json", "--report", "r.html")
    assert other.code == 1 and "other.json: expected a front that" in other.err
    lost = cli("front", "shop:net", "--calibration", "shop:items", "--recipe", "int8")
    assert lost.code == 1 and "recipe 'int8' has nothing to choose" in lost.err
    bare = cli("front", "shop:net")
    assert bare.code == 2 and "needs --calibration" in bare.err


def test_tune_measures_products_and_the_whole(cli) -> None:
    data = ("--calibration", "shop:items")
    made = cli("tune", "shop:net", *data, "--recipe", "auto", "--database", "k.json")
    assert made.code == 0 and "products and conversions" in made.out
    times = database.read("k.json")["x86-64-v3"]
    whole = [name for name in times if name.startswith(database.PROGRAM)]
    assert sorted(name.rpartition(" of ")[2] for name in whole) in (
        ["auto", "float32", "int8"], []
    )  # fmt: skip
    assert len(times) > len(whole) + 4
    assert cli("compile", "shop:net", *data, "--database", "k.json", "-o", "a.qcm").code == 0
    bare = cli("tune", "shop:net", *data)
    assert bare.code == 2 and "--database" in bare.err


def test_a_time_may_be_asked_for(cli) -> None:
    auto = ("compile", "shop:net", "--recipe", "auto", "--calibration", "shop:items", "-o", "a.qcm")
    made = cli(*auto, "--max-time", "50")
    assert made.code == 0 and "auto for x86-64-v3" in made.out
    short = cli(*auto, "--max-time", "1e-9")
    assert short.code == 1 and "max_time: expected at least" in short.err
    both = cli(*auto, "--max-time", "1", "--max-drop", "1")
    assert both.code == 2 and "give one of them" in both.err
    bad = cli(*auto, "--max-time", "-1")
    assert bad.code == 2 and "max_time: expected milliseconds above 0" in bad.err
