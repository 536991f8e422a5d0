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
    lost = cli("front", "shop:net", "--calibration", "shop:items", "--recipe", "int8")
    assert lost.code == 1 and "recipe 'int8' has nothing to choose" in lost.err
    bare = cli("front", "shop:net")
    assert bare.code == 2 and "needs --calibration" in bare.err
