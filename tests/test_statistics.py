"""Statistics as a value: shards, files, interruptions; the same bits whatever the way."""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.data import DataError
from qcompiler.graph import Graph
from qcompiler.passes import gather_statistics
from qcompiler.recipe import recipe_of
from qcompiler.statistics import Statistics, merged


def traced(width: int = 8) -> tuple[Graph, list[torch.Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4)]
        net = nn.Sequential(*layers).eval()
        data = [torch.randn(1, 3, 8, 8) for _ in range(12)]
    return qc.trace(net, (data[0],)), data


def same(a: Statistics, b: Statistics) -> bool:
    if (a.model, a.shards, a.values.keys()) != (b.model, b.shards, b.values.keys()):
        return False
    return all(stats == b.values[name] for name, stats in a.values.items())


def test_they_stand_in_the_place_of_the_data(tmp_path: Path) -> None:
    graph, data = traced()
    found = qc.calibrate(graph, data, tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert same(found, loaded) and loaded.items == 12
    assert len(loaded.sample) == 1 and loaded.sample[0].equal(data[0])
    for recipe in ("int8", "int8-fast", "auto"):
        by_data = str(qc.quantize(graph, data, recipe=recipe))
        assert str(qc.quantize(graph, loaded, recipe=recipe)) == by_data


def test_shards_in_any_order_give_the_same_bits(tmp_path: Path) -> None:
    graph, data = traced()
    parts = [qc.calibrate(graph, data[k::3]) for k in range(3)]
    whole = qc.calibrate(graph, data)
    files = []
    for order in permutations(parts):
        joined = merged(list(order))
        assert joined.items == whole.items == 12
        assert all(joined.values[k] == whole.values[k] for k in whole.values)
        joined.save(tmp_path / f"{len(files)}.safetensors")
        files.append((tmp_path / f"{len(files)}.safetensors").read_bytes())
    assert len(set(files)) == 1
    with pytest.raises(DataError, match="is in both statistics: leave one out"):
        parts[0].merge(parts[0])
    with pytest.raises(DataError, match="statistics of different models"):
        parts[0].merge(qc.calibrate(traced(4)[0], data))


class Stopped(Exception):
    """The data ended early, as when a machine is switched off."""


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = traced()
    file = tmp_path / "s.safetensors"
    monkeypatch.setattr(gather_statistics, "KEPT_EVERY", 0.0)

    def first(count: int) -> Any:
        yield from data[:count]
        raise Stopped

    with pytest.raises(DataError, match="the data itself raised Stopped"):
        qc.calibrate(graph, first(5), file)
    kept = Statistics.load(file)
    assert kept.items == 5
    computed: list[int] = []
    original = gather_statistics.run

    def counting(*args: Any, **options: Any) -> Any:
        computed.append(1)
        return original(*args, **options)

    monkeypatch.setattr(gather_statistics, "run", counting)
    assert same(qc.calibrate(graph, data, file), qc.calibrate(graph, data))
    assert len(computed) == (12 - 5) + 12
    assert same(Statistics.load(file), qc.calibrate(graph, data))


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    graph, data = traced()
    file = tmp_path / "s.safetensors"
    qc.calibrate(graph, data[:4], file)
    for other in (data[4:10], data[:2]):
        with pytest.raises(DataError, match="holds the statistics of 4 items of other data"):
            qc.calibrate(graph, other, file)
    with pytest.raises(DataError, match="the statistics are of another model"):
        qc.calibrate(traced(4)[0], data, file)
    with pytest.raises(DataError, match="the statistics are of another model"):
        qc.quantize(traced(4)[0], Statistics.load(file))
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="expected statistics that `qcompiler calibrate` wrote"):
        Statistics.load(file)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Statistics.load(tmp_path / "none.safetensors")


def test_what_reads_the_data_itself_says_so() -> None:
    graph, data = traced()
    found = qc.calibrate(graph, data)
    with pytest.raises(DataError, match="expected the calibration data itself, got statistics"):
        qc.quantize(graph, found, recipe=replace(recipe_of("int8"), rounding="gptq"))
    with pytest.raises(DataError, match="expected the calibration data itself, got statistics"):
        qc.explain(graph, found)


MEMORY = """
import resource, sys, torch
import qcompiler as qc
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
graph = qc.trace(net, (torch.randn(1, 3, 128, 128),))
count = int(sys.argv[1])
qc.calibrate(graph, (torch.randn(1, 3, 128, 128) for _ in range(count)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data() -> None:
    """1,000 samples are 200 MB, of which nothing may stay."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", MEMORY, str(count)], check=True,
                           capture_output=True, text=True).stdout)
        for count in (16, 1000)
    ]  # fmt: skip
    assert peaks[1] < peaks[0] + 40 * 1024  # KiB


def test_inputs_that_are_one_tensor_are_kept(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(a) + b

    x = torch.randn(2, 8)
    graph = qc.trace(Twice().eval(), (x, torch.randn(2, 8)))
    qc.calibrate(graph, [(x, x)], tmp_path / "s.safetensors")
    assert len(Statistics.load(tmp_path / "s.safetensors").sample) == 2


def test_tuning_takes_them_too() -> None:
    from qcompiler.api import stages_of

    graph, data = traced()
    done = stages_of(graph, qc.calibrate(graph, data), "native", "int8", tuned=True)
    assert done.model(data[0]).shape == (1, 4)
