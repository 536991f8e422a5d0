"""The bench command: what it prints and refuses. No test asserts a time."""

import json
import sys
from pathlib import Path

import pytest

from qcompiler import peers, targets
from qcompiler.bench import resident, session, works
from qcompiler.bench.resident import Resident, memory_verdict
from qcompiler.peers import Job, Mode, Precision, Program
from qcompiler.targets import database as kernels

OURS = f"int8 ({targets.native().name})"


def as_torch(job: Job) -> Program:
    import torch

    def call():
        with torch.no_grad():
            return job.module(*job.inputs)

    return Program(call, lambda found: [found.numpy()])


def broken(job: Job) -> Program:
    raise RuntimeError("out of order")


FAKE = (
    Mode("onnxruntime", "float32", "as torch", Precision.FLOAT32, as_torch),
    Mode("onnxruntime", "int8", "as torch", Precision.INT8, as_torch),
    Mode("onnxruntime", "4 bit", "never", Precision.FOUR_BIT, broken),
    Mode("onnxruntime", "elsewhere", "other works", Precision.INT8, broken, families=frozenset()),
)


@pytest.fixture
def fake_peers(monkeypatch):
    """A peer that computes as torch does, and breaks in one mode."""
    monkeypatch.setattr(peers, "require", lambda name: None)
    monkeypatch.setattr(peers, "modes", lambda name: FAKE)


def test_against_peers_all_our_recipes_are_measured(fake_peers, cli) -> None:
    done = cli("bench", "shop:net", "--against", "onnxruntime", "--rounds", 2, "--json",
               "--per-op", "--compile", "--database", "k.json")  # fmt: skip
    assert done.code == 0
    kept = kernels.read("k.json")[targets.native().name]
    assert {"float32", "int8"} <= {name.rpartition(" of ")[2] for name in kept}
    found = json.loads(done.out)
    (work,) = found["works"]
    rows = {r["program"]: r for r in work["rows"]}
    assert rows["4 bit (onnxruntime)"]["failure"] == "RuntimeError: out of order"
    assert rows["int8 (onnxruntime)"]["times"]["count"] >= 2
    assert {r["setting"] for r in work["rows"] if r["owner"] == "qcompiler"} >= {
        "float32", "int8", "int8-dynamic"
    }  # fmt: skip
    assert OURS in found["times_ms"]
    assert sum(op["share"] for op in work["per_op"]) == pytest.approx(1.0)
    assert {"torch", "qcompiler"} <= set(found["versions"])


def test_the_table_names_what_failed(fake_peers, cli) -> None:
    done = cli("bench", "shop:net", "--against", "onnxruntime", "--recipe", "int8-dynamic",
               "--rounds", 2)  # fmt: skip
    assert done.code == 0
    assert "4 bit (onnxruntime): failed: RuntimeError: out of order\n" in done.out
    assert "elsewhere" not in done.out
    assert OURS not in done.out
    assert "int8-dynamic" in done.out


def test_a_missing_peer_is_one_line_before_any_work(cli, monkeypatch) -> None:
    monkeypatch.setattr(peers, "_installed", lambda package: False)
    done = cli("bench", "shop:net", "--against", "openvino,torch")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: peer 'openvino' needs openvino, nncf, onnx: pip install 'qcompiler[peers]'\n"
    )


def test_a_built_in_work_is_compared_on_its_held_out_input(cli, monkeypatch) -> None:
    small = works.Work("gemm768", "shop:small", works.Family.PRODUCT, works._normal(4, 8))
    monkeypatch.setattr(works, "ALL", (small,))
    Path("shop.py").write_text(
        "from torch import nn\n\ndef small():\n    return nn.Linear(8, 16).eval(), ()\n"
    )
    monkeypatch.syspath_prepend(".")
    done = cli("bench", "gemm768", "--rounds", 2, "--batch", 2, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    rows = {r["program"]: r for r in found["works"][0]["rows"]}
    assert rows[OURS]["sqnr"] > 20.0
    assert rows[OURS]["batch"] == 2
    assert rows[f"{OURS}, batch 1"]["batch"] == 1
    everything = cli("bench", "--all", "--rounds", 2)
    assert everything.code == 0
    assert "int8-fast" in everything.out


def test_an_artifact_has_kernels_too_but_no_peers(made, cli) -> None:
    done = cli("bench", made / "m.qcm", "--rounds", 2, "--per-op", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert sum(op["share"] for op in found["per_op"]) == pytest.approx(1.0)
    done = cli("bench", made / "m.qcm", "--compile")
    assert done.code == 2
    assert "is a finished program" in done.err


def test_memory_is_below_or_not(cli, monkeypatch) -> None:
    ours, theirs = Resident("int8", "qcompiler", 80.0, 90.0), Resident("q", "onnxruntime", 100.0)
    assert memory_verdict([ours]) is None
    found = memory_verdict([ours, theirs])
    assert found is not None
    assert (found.met, found.ratio) == (True, 0.8)
    failed = Resident("q", "onnxruntime", failure="killed")
    unknown = memory_verdict([ours, failed])
    assert unknown is not None
    assert (unknown.met, unknown.reason) == (None, "killed")
    monkeypatch.setattr(session, "residents", lambda *_: [ours, failed])
    done = cli("bench", "--memory")
    assert done.code == 0
    assert "failed: killed" in done.out


def test_a_process_of_its_own_is_measured_or_says_why_not() -> None:
    found = resident._resident("p", "o", lambda: resident.REPORT)
    assert found.failure == ""
    assert 0.0 < found.resident <= found.peak
    wrong = resident._resident("p", "o", lambda: "raise ValueError('no file')")
    assert wrong.failure == "ValueError: no file"


def test_our_process_runs_an_artifact_without_torch(made, tmp_path) -> None:
    code = resident.RUN_OURS.format(paths=sys.path, file=str(made / "m.qcm"), threads=1)
    found = resident._resident("p", "o", lambda: code.replace("224, 224", "4, 4"))
    assert found.failure == ""
