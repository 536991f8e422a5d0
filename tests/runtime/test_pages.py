"""Weights in huge pages: where they lie, that they are whole, and that they go with the model."""

from __future__ import annotations

import gc
import mmap
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.runtime import engine, pages
from qcompiler.runtime.manifest import ALIGNMENT
from qcompiler.runtime.pages import HUGE_PAGE, address, huge, together

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FLAG = "hg"
"""In the VmFlags of a mapping: it was asked to be in huge pages (Linux, Documentation/proc)."""


def flags_at(at: int) -> list[str]:
    """The flags of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= at < high
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {at:#x}")


def parts(*sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"w{k}": rng.integers(0, 256, n).astype(np.uint8) for k, n in enumerate(sizes)}


SIZES = pytest.mark.parametrize(
    "sizes", [(), (0,), (1, 0, 65), (100, HUGE_PAGE - 1), (HUGE_PAGE, 3), (3, 2 * HUGE_PAGE + 5, 9)]
)


@SIZES
def test_copies_are_whole_aligned_and_apart(sizes) -> None:
    given = parts(*sizes)
    found = together(given)
    assert list(found) == list(given)
    spans = sorted((address(f), f.nbytes) for f in found.values() if f.nbytes)
    assert all(at + size <= after for (at, size), (after, _) in pairwise(spans))
    for name, part in given.items():
        np.testing.assert_array_equal(found[name], part)
        assert address(found[name]) % ALIGNMENT == 0 or part.nbytes == 0
        assert not np.shares_memory(found[name], part)


@SIZES
def test_a_machine_without_huge_pages(sizes, monkeypatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    given = parts(*sizes)
    assert all((together(given)[k] == v).all() for k, v in given.items())


def test_a_linux_without_huge_pages(monkeypatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # no advice: EINVAL
    assert (huge(HUGE_PAGE) == 0).all()


@pytest.mark.skipif(not SETTING.exists(), reason="this Linux has no huge pages")
def test_huge_pages_are_asked_for_and_whole() -> None:
    found = huge(2 * HUGE_PAGE + 100)
    assert address(found) % HUGE_PAGE == 0 and found.nbytes == 2 * HUGE_PAGE + 100
    assert FLAG in flags_at(address(found))
    assert FLAG not in flags_at(address(found) + 2 * HUGE_PAGE)


def test_the_memory_goes_with_the_last_array(monkeypatch) -> None:
    made = []

    class Watched(mmap.mmap):
        def __init__(self, *_: object) -> None:
            made.append(weakref.ref(self))

    monkeypatch.setattr(pages.mmap, "mmap", Watched)
    arrays = together(parts(HUGE_PAGE, 10))
    last = arrays.pop("w1")
    del arrays
    gc.collect()
    assert [m() is None for m in made] == [False]
    del last
    gc.collect()
    assert [m() is None for m in made] == [True]


@pytest.fixture(scope="module")
def big() -> qc.CompiledModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 1024)).eval()
    return qc.compile(net, (torch.randn(1, 1024),), target="x86-64-v3", recipe="int8-dynamic")


def test_weights_of_a_built_model_share_one_piece_of_huge_pages(big) -> None:
    x = torch.randn(1, 1024)
    assert torch.equal(big(x), qc.interpret(big.graph, x))
    spans = sorted(engine.span_of(t) for t in big._engine.weights)
    assert spans[-1][0] + spans[-1][1] - spans[0][0] < 4 * HUGE_PAGE
    if SETTING.exists():
        largest = max(spans, key=lambda span: span[1])
        assert FLAG in flags_at(largest[0])


def test_its_graph_has_the_weights_where_they_lie(big) -> None:
    spans = map(engine.span_of, big._engine.weights)
    places = {at for at, size in spans if size >= 1024 * 2048}
    assert len(places) == 2
    consts = [n.op.value for n in big.graph.nodes() if hasattr(n.op, "value")]
    assert places <= {c.data_ptr() for c in consts}


def test_a_loaded_file_is_asked_to_be_in_huge_pages(big, tmp_path) -> None:
    big.save(tmp_path / "m.qcm")
    loaded = qc.load(tmp_path / "m.qcm")
    x = torch.randn(1, 1024)
    assert torch.equal(loaded(x), big(x))
    if SETTING.exists():
        assert FLAG in flags_at(engine.span_of(loaded._engine.weights[0])[0])
