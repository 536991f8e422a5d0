"""One INTEGER graph, quantized once, on every Arm tier under qemu: the interpreter's integers.

Each tier runs on the CPU that just has it. All its programs share one emulated process.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from random_layers import PER_MODULE, module, values

import qcompiler as qc
from qcompiler import passes, targets
from qcompiler.context import Context
from qcompiler.graph import Graph
from qcompiler.runtime.verify import verify
from qcompiler.targets.build import compiled
from qcompiler.targets.emulation import EmulationError, arm
from qcompiler.targets.lower import lower
from qcompiler.zoo import load
from qcompiler.zoo.data import minilm_batches

TIERS = {"armv8-a": "cortex-a72", "armv8.2-dotprod": "cortex-a76", "armv8.6-i8mm": "max"}
OWN = {"armv8-a": "sadalp", "armv8.2-dotprod": "sdot", "armv8.6-i8mm": "usmmla"}
HIGHER = {
    "armv8-a": ("sdot", "udot", "usdot", "sudot", "smmla", "ummla", "usmmla"),
    "armv8.2-dotprod": ("usdot", "sudot", "smmla", "ummla", "usmmla"),
    "armv8.6-i8mm": (),
}
MODULES = 4  # of random regions
Case = tuple[Graph, list[torch.Tensor]]

assert MODULES * PER_MODULE >= 100


def quantized(net: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Case:
    return qc.quantize(qc.trace(net, inputs), [inputs], "x86-64-v3", "int8"), list(inputs)


@cache
def cases() -> dict[str, Case]:
    """INTEGER graphs with their inputs."""
    found: dict[str, Case] = {}
    for seed in range(MODULES):
        graph = module(100 + seed)
        found[f"regions {seed}"] = graph, values(graph, seed)
    for name in ("rnet", "efficientnet_lite0"):
        found[name] = quantized(*load(name))
    sentence = next(iter(minilm_batches(4, 16)))
    found["minilm"] = quantized(load("minilm")[0], sentence)
    return found


@pytest.fixture(scope="module")
def emulated() -> None:
    """Skips, saying why, where no Arm can be emulated."""
    reason = arm.missing()
    if reason is None:
        try:
            arm.userland()
        except EmulationError as e:
            reason = str(e)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("tier", TIERS)
def test_programs_give_the_interpreters_integers(emulated, tier: str, tmp_path: Path) -> None:
    jobs = []
    for name, (graph, inputs) in cases().items():
        path = tmp_path / f"{name}.qcm"
        qc.build(graph, tier).save(path)
        jobs.append(arm.Job(path, [x.numpy() for x in inputs]))
    results = arm.Arm(TIERS[tier]).run(jobs)
    for (name, (graph, inputs)), result in zip(cases().items(), results, strict=True):
        assert result.error is None, f"{name}: {result.error}"
        wanted = qc.interpret(graph, *inputs)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for node, ours, oracle in zip(graph.outputs, result.outputs, wanted, strict=True):
            assert np.array_equal(ours, oracle.numpy()), f"{name}: {node!r}"


@pytest.mark.parametrize("tier", TIERS)
def test_each_tier_has_its_own_instructions_and_none_of_a_higher_one(tier: str) -> None:
    graph, _ = cases()["rnet"]
    target = targets.get(tier)
    *_, fused = passes.build.stages(graph, Context(target))
    count = instructions(compiled(lower(fused, target), target))
    assert count[OWN[tier]] > 100, count
    assert {name: count[name] for name in HIGHER[tier] if count[name]} == {}


def instructions(executable: object) -> Counter[str]:
    """How often each mnemonic stands in the assembly of a built module."""
    modules, text = [executable.mod], ""
    while modules:
        m = modules.pop()
        modules += list(m.imports)
        text += m.inspect_source("asm") if m.kind == "llvm" else ""
    return Counter(re.findall(r"^\s+([a-z]\w*)", text, re.MULTILINE))


def test_a_cpu_below_the_tier_is_refused_before_the_library_is_opened(
    emulated, tmp_path: Path
) -> None:
    graph, inputs = cases()["rnet"]
    path = tmp_path / "m.qcm"
    qc.build(graph, "armv8.6-i8mm").save(path)
    (result,) = arm.Arm("cortex-a72").run([arm.Job(path, inputs)])
    assert result.error is not None and result.error.startswith("MachineError: ")
    assert "built for armv8.6-i8mm" in result.error
    assert "its CPU lacks asimddp, i8mm" in result.error
    with pytest.raises(qc.MachineError, match="its CPU lacks asimd, asimddp, i8mm"):
        qc.load(path)


def test_verify_compares_every_kernel_there(emulated, tmp_path: Path) -> None:
    graph, inputs = cases()["rnet"]
    path = tmp_path / "m.qcm"
    model = qc.build(graph, "armv8-a")
    model.save(path)
    call = targets.get("armv8-a").emulator.begin(path)
    verdict = verify(model, inputs, tapped=lambda values: call(values, True))
    assert len(verdict.kernels) > 5 and verdict.holds
    with pytest.raises(EmulationError, match=r"cortex-a72: InputError: .*expected 1 input"):
        call([*inputs, *inputs], False)
