"""Four tiers of x86-64: each has its own instructions, and none that a lower machine lacks."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from random_layers import module, values

import qcompiler as qc
from qcompiler import passes, targets
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.targets.build import compiled
from qcompiler.targets.lower import lower
from qcompiler.zoo import load

AVX512 = ("%zmm", "%[xy]mm(1[6-9]|2[0-9]|3[01])", "%k[0-7]")  # registers that AVX2 lacks
OWN = {
    "x86-64-v3": r"vpmaddubsw .*%ymm",
    "x86-64-v4": r"vpmaddubsw .*%zmm",
    "x86-64-avxvnni": r"vpdpbusd .*%ymm",
    "x86-64-avx512vnni": r"vpdpbusd .*%zmm",
}
HIGHER = {
    "x86-64-v3": ("vpdp", *AVX512),
    "x86-64-v4": ("vpdp",),
    "x86-64-avxvnni": AVX512,
    "x86-64-avx512vnni": (),
}


@cache
def quantized(target: str) -> Graph:
    net, (x,) = load("rnet")
    return qc.quantize(qc.trace(net, (x[:1],)), [x[:1]], target, "int8")


def lines(name: str) -> list[str]:
    """The assembly of R-Net for a target, an instruction a line."""
    target = targets.get(name)
    *_, fused = passes.build.stages(quantized("x86-64-v3"), Context(target))
    modules, text = [compiled(lower(fused, target), target).mod], ""
    while modules:
        m = modules.pop()
        modules += list(m.imports)
        text += m.inspect_source("asm") if m.kind == "llvm" else ""
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("\t")]


@pytest.mark.parametrize("name", OWN)
def test_each_tier_has_its_own_instructions_and_none_of_a_higher_one(name: str) -> None:
    text = lines(name)
    # R-Net's convolutions: its linear layers have one row and take exact sums of 16 x 16 bits.
    assert sum(bool(re.search(OWN[name], line)) for line in text) > 90
    found = Counter(h for line in text for h in HIGHER[name] if re.search(h, line))
    assert not found


def nodes(name: str) -> str:
    """The graph quantized for a target, without the line that names it."""
    return str(quantized(name)).partition("\n")[2]


def test_nothing_is_asked_of_weights_that_are_added_in_32_bits() -> None:
    """The proof scale is for sums in 16 bits; VNNI has none, whatever their width."""
    rules = {name: [s.rule for s in targets.get(name).sums(0, 255)] for name in OWN}
    assert any(rules["x86-64-v3"]) and rules["x86-64-v3"] == rules["x86-64-v4"]
    assert not any(rules["x86-64-avxvnni"] + rules["x86-64-avx512vnni"])
    assert nodes("x86-64-v3") == nodes("x86-64-v4")
    assert nodes("x86-64-avxvnni") == nodes("x86-64-avx512vnni") != nodes("x86-64-v3")


def test_the_kernels_of_256_bit_vnni_give_the_interpreters_integers() -> None:
    """Built with AVX-512's VNNI, which more CPUs have: the same instructions, encoded otherwise."""
    here, target = targets.host_features(), targets.get("x86-64-avxvnni")
    features = ("avx512vl", "avx512_vnni")
    if not here.issuperset(features):
        pytest.skip(f"this CPU lacks {', '.join(sorted(set(features) - here))}")
    mattr = ["+avx512vl", "+avx512vnni"]
    alike = replace(target, tvm={**target.tvm, "mattr": mattr}, features=features)
    _, (x,) = load("rnet")
    graphs = [(quantized("x86-64-avxvnni"), [x[:1]]), (module(9), values(module(9), 9))]
    for graph, inputs in graphs:
        pairs = zip(listed(qc.build(graph, alike)(*inputs)), listed(qc.interpret(graph, *inputs)),
                    strict=True)  # fmt: skip
        assert all(torch.equal(ours, oracle) for ours, oracle in pairs)


def listed(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
