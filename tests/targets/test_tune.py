"""Tuning: what is measured, the file it is kept in, and that no tile changes an integer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.graph import Graph
from qcompiler.ops import IntConv2d, IntLinear
from qcompiler.runtime.bundle import LIBRARY
from qcompiler.target import Sums
from qcompiler.targets import database, get
from qcompiler.targets.kernels.anchors import product_of
from qcompiler.targets.kernels.plan import candidates
from qcompiler.targets.tune import TILES, TuneError
from qcompiler.types import DType

V3 = get("x86-64-v3")
BARE = replace(V3, times={})


def small(recipe: str = "int8") -> tuple[Graph, torch.Tensor]:
    """A convolution, a strided and a pointwise one, a depthwise one and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 24, 3, 2), nn.ReLU(),
        nn.Conv2d(24, 72, 1), nn.ReLU(), nn.Conv2d(72, 72, 3, groups=72), nn.Flatten(2),
        nn.Linear(16, 20),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 13, 13)
    return qc.quantize(qc.trace(net, (x,)), [x], BARE, recipe), x


def products(graph: Graph) -> dict[str, list[tuple[int, int]]]:
    """The tiles of every product with constant weights."""
    from qcompiler import passes
    from qcompiler.context import Context

    found = [product_of(n, BARE) for n in passes.regions(graph, Context(BARE)).nodes()]
    return {p.name: candidates(p.g, p.dot, p.in_dtype, 99) for p in found if p is not None}


@pytest.mark.parametrize("recipe", ["int8", "int8-fast", "float32"])
def test_every_tile_gives_the_same_integers(recipe: str) -> None:
    graph, x = small(recipe)
    tiles = products(graph)
    assert len(tiles) == 5 and sum(len(t) > 1 for t in tiles.values()) == 4  # not the depthwise one
    expected = qc.build(graph, BARE)(x)
    for k in range(0, max(map(len, tiles.values())), 4):  # of a model's products each takes a turn
        rows = {p: t[(k + i) % len(t)] for i, (p, t) in enumerate(tiles.items()) if t}
        times = {p: {f"{r}x{v}": 1.0} for p, (r, v) in rows.items()}
        made = qc.build(graph, BARE.with_times(times))(x)
        assert torch.equal(made, expected) or recipe == "float32"
        assert torch.allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_the_estimate_comes_first_and_no_tile_twice() -> None:
    for tiles in products(small()[0]).values():
        assert len(set(tiles)) == len(tiles)
    graph, _ = small()
    tuned = qc.tune(graph, BARE)
    assert products(graph).keys() < tuned.times.keys()
    for name, tiles in products(graph).items():
        times = tuned.times[name]
        wanted = [f"{r}x{v}" for r, v in tiles[: len(times)]] or [database.WHOLE]
        assert list(times) == wanted and len(times) == (TILES if tiles else 1)
        assert all(us > 0 for us in times.values())
    assert BARE.times == {}


def test_every_instruction_is_measured_and_float32_too() -> None:
    graph, _ = small()
    tuned = qc.tune(graph, BARE)
    assert {database.QUANTIZE, database.DEQUANTIZE} < tuned.times.keys()
    found: dict[str, set[str]] = {}
    for name in tuned.times.keys() - {database.QUANTIZE, database.DEQUANTIZE}:
        sizes, instruction = name.split(" by ")
        found.setdefault(sizes, set()).add(instruction)
    dots = {"maddubs1", "maddubs2", "maddubs4", "maddubs8", "maddwd"}
    every = {"fma of float32", *(f"{dot} of uint8" for dot in dots)}
    depthwise = {"fma of float32", "maddwd of uint8"}
    assert len(found) == 5
    assert all(f == (depthwise if "groups 72" in s else every) for s, f in found.items())
    for node in graph.nodes():
        if isinstance(node.op, IntConv2d | IntLinear):  # what a layer is looked up by
            exact = Sums(None, 0, 255)
            times = tuned.microseconds(node, [exact, None], DType.UINT8)
            assert times is not None and times.measured
            bare = BARE.microseconds(node, [exact, None], DType.UINT8)
            assert bare is not None and not bare.measured and all(us > 0 for us in bare.us)


def test_a_template_without_tiles_has_one_time() -> None:
    times = {"p": {database.WHOLE: 3.0}, "q": {"2x2": 4.0}}
    target = BARE.with_times(times)
    assert target.tile("p") is None and target.least("p") == 3.0
    assert target.tile("q") == (2, 2) and target.least("q") == 4.0


def test_the_measured_tile_is_used_and_known_by_the_program() -> None:
    graph, x = small()
    (name, tiles), *_ = products(graph).items()
    slow, fast = (f"{r}x{v}" for r, v in (tiles[0], tiles[-1]))
    target = BARE.with_times({name: {slow: 10.0, fast: 5.0}})
    assert target.tile(name) == tiles[-1] and BARE.tile(name) is None
    plain, tuned = qc.build(graph, BARE), qc.build(graph, target)
    assert "kernel database" not in plain.manifest.hashes
    assert len(tuned.manifest.hashes["kernel database"]) == 64
    assert plain.bundle.members[LIBRARY] != tuned.bundle.members[LIBRARY]
    assert torch.equal(plain(x), tuned(x))


def test_another_tile_must_be_clearly_faster() -> None:
    assert database.fastest({"8x1": 100.0, "2x2": 99.0, "1x4": 120.0}) == (8, 1)
    assert database.fastest({"8x1": 100.0, "2x2": 97.0, "1x4": 120.0}) == (2, 2)
    assert database.fastest({"8x1": 100.0, "2x2": 90.0, "1x4": 90.0}) == (1, 4)
    same = [{"p": {"8x1": 100.0, "2x2": us}} for us in (90.0, 95.0)]
    assert database.digest(same[0]) != database.digest(same[1])  # graphs depend on all times
    assert database.digest(same[0]) == database.digest(dict(same[0])) != database.digest({})


def test_files_are_merged_and_the_newest_times_count(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    database.write(file, "b", {"p": {"8x1": 1.0}})
    database.write(file, "a", {"p": {"8x1": 1.0}, "q": {"2x2": 3.0, "1x4": 2.0}})
    database.write(file, "a", {"p": {"1x4": 5.0}})
    assert database.read(file) == {
        "a": {"p": {"1x4": 5.0}, "q": {"2x2": 3.0, "1x4": 2.0}}, "b": {"p": {"8x1": 1.0}}
    }  # fmt: skip
    assert list(database.read(file)["a"]["q"]) == ["2x2", "1x4"]  # the estimate stays first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "got no JSON"),
        ("[]", "`qcompiler compile --tune` writes one"),
        ('{"format": "qcompiler kernel database", "version": 9}', "expected version 1, got 9"),
        ('{"p": []}', "t: p: expected an object, got []"),
        ('{"p": {}}', "t: p: expected times of tiles, got none"),
        ('{"p": {"8x0": 1}}', "t: p: expected tiles as ROWSxVECTORS, got '8x0'"),
        ('{"p": {"8x999": 1}}', "got '8x999'"),
        ('{"p": {"8x1": NaN}}', "t: p: 8x1: expected microseconds above 0, got nan"),
        ('{"p": {"8x1": true}}', "expected microseconds above 0, got True"),
    ],
)
def test_what_is_no_database_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "k.json"
    if text.startswith('{"p"'):
        rows = {"format": database.FORMAT, "version": 1, "targets": {"t": "ROWS"}}
        text = json.dumps(rows).replace('"ROWS"', text)
    file.write_text(text)
    with pytest.raises(database.DatabaseError) as error:
        database.read(file)
    assert message in str(error.value) and str(file) in str(error.value)
    with pytest.raises(database.DatabaseError):
        database.write(file, "t", {})
    assert file.read_text() == text


def test_a_machine_that_cannot_run_the_target_does_not_tune_it() -> None:
    graph, _ = small()
    with pytest.raises(TuneError, match=r"lacks asimd of armv8-a; tune on one that has them"):
        qc.tune(graph, "armv8-a")


@pytest.mark.parametrize("target", ["cuda-sm80"])
def test_products_of_a_gpu_are_not_tuned(target: str) -> None:
    with pytest.raises(TuneError, match="products of CPUs, not those of cuda-sm80"):
        qc.tune(small()[0], target)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 48), nn.Linear(48, 16)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).masked_fill(mask, 0.0))


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-fast", "w4a8", "float32"])
def test_rows_and_masks_are_tuned(recipe: str) -> None:
    torch.manual_seed(0)
    net, x = Masked().eval(), torch.randn(32, 64) * torch.logspace(0, 3, 32)[:, None]
    mask = torch.rand(32, 48) < 0.5
    graph = qc.quantize(qc.trace(net, (x, mask)), [(x, mask)], BARE, recipe)
    tuned = qc.tune(graph, BARE)
    conversions, layers = 2, 0 if recipe == "w4a8" else 2
    variants = {"float32": 1, "int8-dynamic": 6, "int8-fast": 6, "w4a8": 0}[recipe]
    assert len(tuned.times) == conversions + layers * variants
    made = qc.build(graph, tuned)(x, mask)
    assert torch.allclose(made, qc.interpret(graph, x, mask), rtol=1e-4, atol=1e-3)


def test_what_is_shipped_fits_the_machines() -> None:
    known = database.read(database.SHIPPED)
    assert {"x86-64-v3"} <= set(known) <= set(qc.targets())
    for name, times in known.items():
        assert get(name).times == times
        for product, row in times.items():
            assert "None" not in product and (len(row) > 1 or database.WHOLE in row)
