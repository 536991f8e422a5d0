"""The artifact file: what it holds, how it is mapped, and that no change to it goes unnoticed."""

import hashlib
import json
import re
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

import qcompiler as qc
from qcompiler.runtime import ArtifactError, MachineError, archive, bundle, engine
from qcompiler.runtime.bundle import LIBRARY, MEMBERS, WEIGHTS, read
from qcompiler.runtime.elf import elf_problem
from qcompiler.runtime.manifest import ALIGNMENT, from_json


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewritten(path: Path, **changes: object) -> Path:
    """The artifact with fields of its manifest changed, hashes and all made to fit."""
    parts = contents(path)
    manifest = json.loads(parts.pop("manifest.json"))
    manifest.update(changes)
    archive.write(path, json.dumps(manifest), {name: [parts[name]] for name in MEMBERS})
    return path


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(ArtifactError) as caught:
        qc.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


# ------------------------------------------------------------------------------ what it holds


def test_a_saved_model_is_the_same_model(artifacts, tmp_path) -> None:
    model = qc.load(artifacts("layers"))
    model.save(tmp_path / "again.qcm")
    again = qc.load(tmp_path / "again.qcm")
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(again(x), model(x))
    assert (again.text, again.report) == (model.text, model.report)
    assert (tmp_path / "again.qcm").read_bytes() == artifacts("layers").read_bytes()


def test_it_is_a_zip_of_plain_members(artifacts) -> None:
    found = contents(artifacts("layers"))
    assert list(found) == ["manifest.json", *MEMBERS]
    manifest = json.loads(found["manifest.json"])
    assert {k: v["sha256"] for k, v in manifest["members"].items()} == {
        k: hashlib.sha256(found[k]).hexdigest() for k in MEMBERS
    }
    assert manifest["target"] == "x86-64-v3"
    assert "avx2" in manifest["features"]
    assert manifest["versions"]["qcompiler"] == qc.__version__
    assert all(re.fullmatch("[0-9a-f]{64}", v) for v in manifest["hashes"].values())
    assert found["graph.qir"].startswith(b"graph @fused target=x86-64-v3 recipe=int8")
    assert found[LIBRARY].startswith(b"\x7fELF")


def test_weights_are_stored_once(artifacts) -> None:
    found = contents(artifacts("layers"))
    manifest = from_json(found["manifest.json"])
    weight = next(t for t in manifest.tensors.values() if t.size >= 8 * 36 * 128)
    codes = found[WEIGHTS][weight.offset : weight.offset + weight.size]
    assert sum(part.count(codes[:64]) for part in found.values()) == 1


def test_weights_are_mapped_from_the_file_where_they_lie(artifacts) -> None:
    path = artifacts("layers")
    model = qc.load(path)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if line[-1] == str(path)]
    assert spans
    for tensor in model._engine.weights:
        at, size = engine.span_of(tensor)
        assert at % ALIGNMENT == 0
        assert any(int(a, 16) <= at and at + size <= int(b, 16) for a, b in spans)


def test_the_file_stays_what_it_was_when_the_map_is_written_to(artifact) -> None:
    before = artifact.read_bytes()
    loaded = read(artifact)
    for tensor in loaded.tensors.values():
        tensor[:] = 1
    assert artifact.read_bytes() == before
    assert all((t == 1).all() for t in loaded.tensors.values())


def test_a_model_may_replace_the_file_it_is_mapped_from(artifact) -> None:
    model, x = qc.load(artifact), torch.randn(1, 3, 6, 6)
    expected = model(x)
    model.save(artifact)
    assert torch.equal(model(x), expected)
    assert torch.equal(qc.load(artifact)(x), expected)


# ---------------------------------------------------------------------------------- tampering


@pytest.mark.parametrize("name", ["manifest.json", *MEMBERS])
def test_a_changed_byte_in_a_member_is_seen(artifact, name: str) -> None:
    region = archive.Archive.open(artifact).regions[name]
    data = bytearray(artifact.read_bytes())
    for at in {region.start, (region.start + region.stop) // 2, region.stop - 1}:
        data[at] ^= 0x20
        artifact.write_bytes(data)
        refused(artifact)
        data[at] ^= 0x20


def test_a_changed_byte_anywhere_is_seen(artifact) -> None:
    """Headers, padding and the directory included."""
    data = bytearray(artifact.read_bytes())
    inside = [s for n, s in archive.Archive.open(artifact).regions.items() if n != "manifest.json"]
    frame = [k for k in range(len(data)) if not any(s.start <= k < s.stop for s in inside)]
    assert len(frame) > 1000
    for at in [*frame[::23], *range(len(data) - 120, len(data), 3)]:
        data[at] ^= 0x01
        artifact.write_bytes(data)
        refused(artifact)
        data[at] ^= 0x01
    artifact.write_bytes(data)
    qc.load(artifact)


def test_a_truncated_or_longer_file_is_refused(artifact) -> None:
    data = artifact.read_bytes()
    for size in (0, 1, 21, 22, 100, len(data) // 3, len(data) // 2, len(data) - 82, len(data) - 1):
        artifact.write_bytes(data[:size])
        refused(artifact)
    for changed in (data + b"\0", data + data, b"\0" + data):
        artifact.write_bytes(changed)
        refused(artifact)


@pytest.mark.parametrize(
    "content", [b"graph @float {\n}\n", b"PK\x05\x06" + bytes(18), b"\x7fELF" + bytes(9999)]
)
def test_other_files_are_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "m.qcm"
    path.write_bytes(content)
    refused(path)


def test_other_zips_are_refused(tmp_path) -> None:
    path = tmp_path / "m.qcm"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", json.dumps({"name": "something else"}))
    assert "its manifest is not one of qcompiler" in refused(path)


def test_what_is_no_file_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.qcm"):
        qc.load(tmp_path / "none.qcm")
    refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "expected format version 1, got 99"),
        ({"version": "1"}, "expected format version 1, got '1'"),
        ({"version": True}, "expected format version 1, got True"),
        ({"members": {"a": {"size": True, "sha256": ""}}}, "expected a size, got True"),
        ({"target": "a\nb"}, "expected text on one line, got 'a\\nb'"),
        ({"features": ["a\nb"]}, "expected text on one line, got 'a\\nb'"),
        ({"format": "other"}, "its manifest is not one of qcompiler"),
        ({"entries": {}}, "no entry 'main'"),
        ({"entries": []}, "its manifest is malformed"),
        ({"features": "avx2"}, "expected a list of strings, got 'avx2'"),
        ({"tensors": {"a": {"dtype": "int8", "shape": [4], "offset": 64}}}, "KeyError 'size'"),
        ({"members": {}}, "expected the members"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(artifact, changes: dict, message: str) -> None:
    assert message in refused(rewritten(artifact, **changes))


@pytest.mark.parametrize(
    "place",
    [
        {"offset": 1 << 40},
        {"offset": 1},
        {"size": 0},
        {"shape": [1 << 40]},
        {"dtype": "object"},
        {"dtype": "float128x"},
    ],
)
def test_weights_outside_their_member_are_refused(artifact, place: dict) -> None:
    tensors = json.loads(contents(artifact)["manifest.json"])["tensors"]
    first = next(iter(tensors))
    tensors[first].update(place)
    refused(rewritten(artifact, tensors=tensors))


def test_a_missing_weight_is_refused(artifact) -> None:
    assert "is not in weights.bin" in refused(rewritten(artifact, tensors={}))


# ------------------------------------------------------------------------------- other machines


def test_a_cpu_without_the_features_is_refused_before_the_library_is_opened(
    artifact, monkeypatch
) -> None:
    monkeypatch.setattr(engine, "opened", lambda *_: pytest.fail("opened"))
    changed = rewritten(artifact, features=["avx2", "qpu", "warp-drive"])
    message = refused(changed)
    assert "its CPU lacks qpu, warp-drive" in message
    assert "x86-64-v3" in message
    with pytest.raises(MachineError):
        qc.load(changed)
    assert read(changed, to_run=False).manifest.features[1] == "qpu"


def test_a_model_in_memory_is_refused_when_it_is_called(artifact) -> None:
    changed = read(rewritten(artifact, features=["warp-drive"]), to_run=False)
    model = qc.CompiledModel(changed)
    with pytest.raises(MachineError, match="lacks warp-drive"):
        model(torch.randn(1, 3, 6, 6))


# ------------------------------------------------------------------------------------- zip tricks


def test_a_member_with_a_newline_in_its_name_is_one_line(artifact) -> None:
    with zipfile.ZipFile(artifact, "a") as file:
        file.writestr("one\ntwo", "text")
    assert r"one\ntwo" in refused(artifact)


def test_compressed_members_are_refused(artifact) -> None:
    parts = contents(artifact)
    with zipfile.ZipFile(artifact, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    assert "is compressed or encrypted" in refused(artifact)


def test_members_that_do_not_belong_are_refused(artifact, tmp_path) -> None:
    with zipfile.ZipFile(artifact, "a") as file:
        file.writestr("../escaped.txt", "out of the folder")
    assert "escaped.txt" in refused(artifact)
    assert not list(tmp_path.parent.glob("**/escaped.txt"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_refused(artifact) -> None:
    with zipfile.ZipFile(artifact, "a") as file:
        file.writestr(LIBRARY, "another")
    refused(artifact)


def test_members_over_one_another_are_refused(artifact) -> None:
    """Many entries that share one content is how a small zip claims to be huge."""
    data = bytearray(artifact.read_bytes())
    entries = [m.start() for m in re.finditer(b"PK\x01\x02", data)]
    first = data[entries[0] + 42 : entries[0] + 46]
    data[entries[1] + 42 : entries[1] + 46] = first
    artifact.write_bytes(data)
    refused(artifact)


def test_a_size_beyond_the_file_is_refused(artifact) -> None:
    data = bytearray(artifact.read_bytes())
    for entry in [m.start() for m in re.finditer(b"PK\x01\x02", data)]:
        data[entry + 20 : entry + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    artifact.write_bytes(data)
    refused(artifact)


# ------------------------------------------------------------------------------ nothing left over


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_unpacked_library_is_private_and_does_not_stay(artifact, scratch, monkeypatch) -> None:
    seen = []
    tvm = engine.import_tvm()
    real = tvm.runtime.load_module

    def load_module(path: str):
        seen.append(Path(path).parent.stat().st_mode & 0o777)
        assert Path(path).is_relative_to(scratch)
        return real(path)

    monkeypatch.setattr(tvm.runtime, "load_module", load_module)
    model = qc.load(artifact)
    assert seen == [0o700]
    assert list(scratch.iterdir()) == []
    assert model(torch.randn(1, 3, 6, 6)).shape == (1, 128)


@pytest.mark.parametrize("name", [bundle.GRAPH, bundle.REPORT])
def test_members_that_are_no_text_are_named(artifact, name: str) -> None:
    model = qc.load(spoiled(artifact, name, b"\xff\xfe noise"))
    read_it = {bundle.GRAPH: lambda: model.text, bundle.REPORT: lambda: model.report}[name]
    with pytest.raises(ArtifactError, match=f"{artifact}: its {name} is no UTF-8 text"):
        read_it()


def spoiled(path: Path, name: str, content: bytes) -> Path:
    """The artifact with another member, hashes and all made to fit."""
    good = read(path)
    bundle.Bundle(good.manifest, {**good.members, name: content}, good.tensors).save(path)
    return path


def test_a_library_that_was_cut_off_is_refused_before_it_is_opened(artifact, monkeypatch) -> None:
    """The loader would map pages that the file does not have: SIGBUS."""
    code = bytes(read(artifact).members[LIBRARY])
    assert elf_problem(code) is None
    monkeypatch.setattr(engine.import_tvm().runtime, "load_module", lambda _: pytest.fail("opened"))
    for size in (0, 5, 63, 64, 200, len(code) // 3, len(code) // 2, len(code) - 1):
        assert "its library cannot be opened: " in refused(spoiled(artifact, LIBRARY, code[:size]))


def test_a_library_that_cannot_be_opened_is_an_error_and_leaves_nothing(artifact, scratch) -> None:
    good = read(artifact)
    spoiled = bundle.Bundle(
        good.manifest, {**good.members, LIBRARY: b"\x7fELF and no more"}, good.tensors
    )
    spoiled.save(artifact)
    assert "its library cannot be opened" in refused(artifact)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/m.qcm", "", "file/m.qcm"])
def test_a_path_that_cannot_be_written_is_named(artifact, tmp_path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / place
    with pytest.raises(OSError, match="cannot write") as caught:
        qc.load(artifact).save(path)
    assert caught.value.filename == str(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_leaves_the_old_file(artifact, tmp_path, monkeypatch) -> None:
    model, before = qc.load(artifact), artifact.read_bytes()
    files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(archive, "_frame", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(artifact)
    assert artifact.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_the_file_can_be_moved_and_read_by_others(artifact, tmp_path) -> None:
    qc.load(artifact).save(tmp_path / "new.qcm")
    assert (tmp_path / "new.qcm").stat().st_mode & 0o444 == 0o444
    shutil.move(tmp_path / "new.qcm", tmp_path / "moved.qcm")
    qc.load(tmp_path / "moved.qcm")
