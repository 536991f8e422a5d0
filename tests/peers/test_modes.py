"""Peers as values: what is said of them, and what is said where one is missing."""

import shutil

import pytest
import torch
from torch import nn

from qcompiler import peers
from qcompiler.peers import Family, Job, MissingPeer, Mode, Precision, Program, Skipped, modes
from qcompiler.peers.exported import ExportError, exported, feed, tensors

NO_PEERS = "the peers are not installed: pip install 'qcompiler[peers]'"


def installed(name: str) -> bool:
    try:
        peers.require(name)
    except MissingPeer:
        return False
    return True


@pytest.fixture
def job(tmp_path) -> Job:
    """Two linear layers on four rows."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval()
    calibration = tuple((torch.randn(4, 64),) for _ in range(4))
    return Job("net", module, (torch.randn(4, 64),), calibration, Family.WEIGHTS, 1, tmp_path)


def test_an_unknown_peer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no peer 'tflite'; choose of onnxruntime, openvino"):
        peers.require("tflite")


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(peers, "_installed", lambda package: package != "onnx")
    with pytest.raises(MissingPeer) as e:
        modes("onnxruntime")
    assert str(e.value) == "peer 'onnxruntime' needs onnx: pip install 'qcompiler[peers]'"
    assert modes("torch")


@pytest.mark.parametrize("name", peers.PEERS)
def test_modes_are_told_apart(name: str) -> None:
    if not installed(name):
        pytest.skip(NO_PEERS)
    found = modes(name)
    assert len({m.label for m in found}) == len(found)
    assert all(m.peer == name and m.what and m.families for m in found)
    assert any(m.precision is Precision.FLOAT32 for m in found)


def test_a_setting_that_overflows_says_so_where_it_does() -> None:
    def nothing(job: Job) -> Program:
        raise AssertionError

    mode = Mode("p", "u8s8", "full range", Precision.INT8, nothing, saturates=True)
    narrow = Mode("p", "u8s7", "7 bits", Precision.INT8, nothing)
    assert "can saturate here" in mode.note(frozenset({"avx2", "fma"}))
    assert mode.note(frozenset({"avx2", "avx512_vnni"})) == ""
    assert narrow.note(frozenset({"avx2"})) == ""


def test_results_are_flat_in_the_order_of_the_module() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [t.numel() for t in tensors({"x": a, "y": (b, 3, [c])})] == [1, 2, 3]


def test_torch_without_a_compiler_is_skipped_with_the_reason(job, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (compiled,) = modes("torch")
    with pytest.raises(Skipped, match=r"needs a C\+\+ compiler"):
        compiled.prepare(job)


def decibels(job: Job, program: Program) -> float:
    from qcompiler.report.quality import sqnr

    with torch.no_grad():
        return sqnr(job.module(*job.inputs), program.outputs()[0])


LEAST = {Precision.FLOAT32: 80.0, Precision.INT8: 20.0, Precision.FOUR_BIT: 10.0}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_mode_computes_the_module(name: str, job) -> None:
    if not installed(name):
        pytest.skip(NO_PEERS)
    for mode in modes(name):
        program = mode.prepare(job)
        if not mode.note():
            assert decibels(job, program) > LEAST[mode.precision], mode.label
    # One export for all, and nothing else is left.
    assert [p.name for p in job.folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_method_quantizes_in_silence_and_takes_other_inputs(name: str, job, capfd) -> None:
    if not installed(name):
        pytest.skip(NO_PEERS)
    found = peers.methods(name)
    assert len({m.name for m in found}) == len(found) >= 2
    for mode in found:
        program = mode.prepare(job)
        assert program.on is not None and decibels(job, program) > 15, mode.label
        twice = tuple(2 * t for t in job.inputs)
        (other,) = program.on(twice).outputs()
        with torch.no_grad():
            wanted = job.module(*twice)
        assert (torch.as_tensor(other) - wanted).norm() < 0.5 * wanted.norm()
    assert capfd.readouterr().out == ""


def test_the_module_stays_in_eval_mode_and_is_written_once(job) -> None:
    if not installed("onnxruntime"):
        pytest.skip(NO_PEERS)
    first = exported(job).stat().st_mtime_ns
    assert not any(m.training for m in job.module.modules())
    assert exported(job).stat().st_mtime_ns == first
    assert list(feed(job, job.inputs)) == ["input_0"]


def test_what_cannot_be_exported_is_tried_once(job, monkeypatch) -> None:
    tries = []

    def fails(*_: object, **__: object) -> None:
        tries.append(1)
        raise TypeError("no such operator\nat line 3")

    monkeypatch.setattr(torch.onnx, "export", fails)
    for _ in range(2):
        with pytest.raises(ExportError, match=r"^torch.onnx.export: no such operator$"):
            exported(job)
    assert len(tries) == 1
