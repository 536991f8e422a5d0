"""One INTEGER graph, quantized once: every target builds it and gives the same integers."""

from pathlib import Path

import pytest
import torch
from random_layers import module, values

import qcompiler as qc
from qcompiler import targets
from qcompiler.targets.emulation import EmulationError, arm
from qcompiler.zoo import load

CPUS = {"armv8-a": "cortex-a72", "armv8.2-dotprod": "cortex-a76", "armv8.6-i8mm": "max"}


def graphs() -> list[tuple[qc.Graph, list[torch.Tensor]]]:
    """MTCNN's R-Net, quantized for AVX2, and a graph of random layers."""
    net, (x,) = load("rnet")
    rnet = qc.quantize(qc.trace(net, (x[:1],)), [x[:1]], "x86-64-v3", "int8")
    layers = module(5)
    return [(rnet, [x[:1]]), (layers, values(layers, 5))]


def answers(name: str, cases: list, folder: Path) -> list[tuple[torch.Tensor, ...]]:
    """What each program built for a target gives, here or where it is emulated."""
    if name in CPUS:
        jobs = []
        for i, (graph, inputs) in enumerate(cases):
            path = folder / f"{i}.qcm"
            qc.build(graph, name).save(path)
            jobs.append(arm.Job(path, [x.numpy() for x in inputs]))
        results = arm.Arm(CPUS[name]).run(jobs)
        assert [r.error for r in results] == [None] * len(cases)
        return [tuple(map(torch.from_numpy, r.outputs)) for r in results]
    return [listed(qc.build(graph, name)(*inputs)) for graph, inputs in cases]


def listed(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def lacking(name: str) -> str | None:
    """Why this machine neither runs nor emulates a CPU target."""
    if name in CPUS:
        try:
            return arm.missing() or (arm.userland() and None)
        except EmulationError as e:
            return str(e)
    if name.startswith("cuda"):
        return None
    missing = sorted(set(targets.get(name).features) - targets.host_features())
    return f"this CPU lacks {', '.join(missing)}" if missing else None


@pytest.fixture(scope="module")
def reference() -> tuple[list, list[tuple[torch.Tensor, ...]]]:
    """(cases, what the interpreter gives for each)."""
    cases = graphs()
    return cases, [listed(qc.interpret(graph, *inputs)) for graph, inputs in cases]


@pytest.mark.parametrize("name", [t.name for t in targets.DONE])
def test_the_same_integers_everywhere(name: str, reference, tmp_path: Path, request) -> None:
    if targets.get(name).device == "cuda":
        request.getfixturevalue("gpu")
    else:
        reason = lacking(name)
        if reason:
            pytest.skip(reason)
    cases, expected = reference
    for got, wanted in zip(answers(name, cases, tmp_path), expected, strict=True):
        assert len(got) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
